/* A link of long delay that loses packets, between two TUN devices that it makes: emulator <A> <B> <one way, µs> <loss, 0 to 1>
 *
 * Says "ready" when both are there. For each line on its input it says how many bytes it has carried from A to B, and from
 * B to A. Ends with its input.
 *
 * One thread. A delay that never changes keeps packets in order, so that each way is a ring and its head is due first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 1 << 16, PACKET = 2048 };

struct packet {
    long long due;
    int length;
    unsigned char bytes[PACKET];
};

struct way {
    int from, to;
    struct packet *ring;
    unsigned head, tail;
    unsigned long long bytes;
};

static long long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int device(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) {
        perror(name);
        exit(1);
    }
    return fd;
}

static double chance(void) {
    static unsigned long long state = 0x9e3779b97f4a7c15ULL; /* the same losses in every run */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) / 9007199254740992.0;
}

/* Takes all that has come. A full ring drops, as a full queue does. */
static void take(struct way *way, long long delay, double loss) {
    for (;;) {
        struct packet *packet = &way->ring[way->tail % SLOTS];
        static unsigned char dropped[PACKET];
        int full = way->tail - way->head == SLOTS;
        int length = read(way->from, full ? dropped : packet->bytes, PACKET);
        if (length <= 0) return;
        unsigned char version = (full ? dropped : packet->bytes)[0] >> 4;
        if (version != 4) continue; /* neighbour discovery */
        way->bytes += length;
        if (full || chance() < loss) continue;
        packet->length = length;
        packet->due = nanoseconds() + delay;
        way->tail++;
    }
}

/* Gives all that is due. */
static void give(struct way *way) {
    for (; way->head != way->tail; way->head++) {
        struct packet *packet = &way->ring[way->head % SLOTS];
        if (packet->due > nanoseconds()) return;
        if (write(way->to, packet->bytes, packet->length) < 0 && errno == EAGAIN) return;
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    long long delay = atoll(argv[3]) * 1000;
    double loss = atof(argv[4]);
    int a = device(argv[1]), b = device(argv[2]);
    struct way ways[2] = {{.from = a, .to = b}, {.from = b, .to = a}};
    for (int i = 0; i < 2; i++) {
        ways[i].ring = malloc(SLOTS * sizeof(struct packet));
        if (!ways[i].ring) return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        long long due = -1;
        for (int i = 0; i < 2; i++)
            if (ways[i].head != ways[i].tail) {
                long long at = ways[i].ring[ways[i].head % SLOTS].due;
                if (due < 0 || at < due) due = at;
            }
        struct pollfd wait[3] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        long long left = due < 0 ? 1000000000LL : due - nanoseconds();
        if (left < 0) left = 0;
        struct timespec timeout = {left / 1000000000LL, left % 1000000000LL};
        ppoll(wait, 3, &timeout, NULL);
        for (int i = 0; i < 2; i++) {
            take(&ways[i], delay, loss);
            give(&ways[i]);
        }
        if (wait[2].revents) {
            char line[64];
            if (read(0, line, sizeof line) <= 0) return 0;
            printf("%llu %llu\n", ways[0].bytes, ways[1].bytes);
            fflush(stdout);
        }
    }
}

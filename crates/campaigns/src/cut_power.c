/* Cuts the power of a file system on a loop device: `cut_power device`, or `shutdown mount-point`.
 *
 * The device is made one sector long, between two requests: what was written to it until then is in the image, and whatever
 * comes later fails. The other way asks the file system itself (ext4, xfs) to forget what it has not written, log included.
 */
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define FS_SHUTDOWN _IOR('X', 125, unsigned)
#define WITHOUT_THE_LOG 2u

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int is_device = strcmp(argv[1], "device") == 0;
    int fd = open(argv[2], is_device ? O_RDWR : O_RDONLY);
    unsigned how = WITHOUT_THE_LOG;
    struct loop_info64 info;
    if (fd < 0) goto failed;
    if (!is_device) {
        if (ioctl(fd, FS_SHUTDOWN, &how)) goto failed;
        return 0;
    }
    if (ioctl(fd, LOOP_GET_STATUS64, &info)) goto failed;
    info.lo_sizelimit = 512;
    if (ioctl(fd, LOOP_SET_STATUS64, &info)) goto failed;
    return 0;
failed:
    perror(argv[2]);
    return 1;
}

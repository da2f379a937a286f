/* A disk that forgets: preloaded into a process, it fails syncs as the kernel does, and keeps what a power cut would leave.
 *
 * Of each file below DISK_ROOT that is written to, DISK_SHADOW holds what is on the disk (`<inode>`) and which pages are
 * only in memory (`<inode>.dirty`, a byte a page). A sync brings those to the shadow. One that fails reports EIO once and
 * takes them for written all the same, as Linux does: they can still be read, and no later sync writes them. Both
 * outlive the process. Names are on the disk at once; what sled syncs by sync_file_range never is.
 *
 * DISK_FAILS is `part of a path:n:count`: of the syncs of such files and folders, the n-th and those behind it fail.
 * DISK_WRITES is `EIO|ENOSPC|SHORT:part of a path:n:count`, the same of writes; a short one writes half of its bytes.
 * With DISK_LIES a sync says that it has written, and has not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 65536
#define FILES 8192

struct entry {
    ino_t inode;
    int shadow;
    unsigned char *dirty;
};

static struct entry files[FILES];
static size_t known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long seen, written;

#define REAL(result, name, ...)                            \
    static result (*real)(__VA_ARGS__);                    \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static ssize_t real_pwrite(int fd, const void *bytes, size_t len, off_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return real(fd, bytes, len, at);
}

static int real_open(const char *path, int flags, mode_t mode) {
    REAL(int, "open64", const char *, int, ...);
    return real(path, flags, mode);
}

static int real_ftruncate(int fd, off_t len) {
    REAL(int, "ftruncate64", int, off_t);
    return real(fd, len);
}

/* The path behind a descriptor, if it is below the root. */
static int is_ours(int fd, char *path, size_t size) {
    const char *root = getenv("DISK_ROOT");
    char link[64];
    if (!root || !getenv("DISK_SHADOW")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, size - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

static void die(const char *what) {
    perror(what);
    abort();
}

/* Copies a file as it is now: whole or, if the process is killed meanwhile, not at all. */
static void copy(int fd, const char *name) {
    char path[64], new[4200], bytes[PAGE];
    ssize_t len;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(new, sizeof new, "%s.new", name);
    int from = real_open(path, O_RDONLY | O_CLOEXEC, 0);
    int to = real_open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from < 0 || to < 0) die("copy");
    for (off_t at = 0; (len = pread(from, bytes, PAGE, at)) > 0; at += len)
        if (real_pwrite(to, bytes, len, at) != len) die("copy");
    if (len < 0 || rename(new, name)) die("copy");
    close(from);
    close(to);
}

/* What is kept of a file; made, of what it holds now, when it is first asked for. */
static struct entry *entry(int fd) {
    char path[4096], name[4096];
    struct stat meta;
    if (!is_ours(fd, path, sizeof path) || fstat(fd, &meta) || !S_ISREG(meta.st_mode)) return NULL;
    for (size_t n = 0; n < known; n++)
        if (files[n].inode == meta.st_ino) return &files[n];
    if (known == FILES) die("too many files");
    struct entry *made = &files[known++];
    made->inode = meta.st_ino;
    snprintf(name, sizeof name, "%s/%lu", getenv("DISK_SHADOW"), (unsigned long)meta.st_ino);
    if (access(name, F_OK)) copy(fd, name);
    made->shadow = real_open(name, O_RDWR | O_CLOEXEC, 0);
    strcat(name, ".dirty");
    int dirty = real_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (made->shadow < 0 || dirty < 0 || real_ftruncate(dirty, PAGES)) die("shadow");
    made->dirty = mmap(NULL, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, dirty, 0);
    if (made->dirty == MAP_FAILED) die("mmap");
    close(dirty);
    return made;
}

static void mark(struct entry *file, off_t from, off_t upto) {
    for (off_t page = from / PAGE; page * PAGE < upto && page < PAGES; page++) file->dirty[page] = 1;
}

static void note(const char *what, const char *path) {
    char name[4096];
    snprintf(name, sizeof name, "%s/failed", getenv("DISK_SHADOW"));
    int note = real_open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    dprintf(note, "%s %s\n", what, path);
    close(note);
}

/* How much of a write is written; less than nothing, and errno, of one that fails. */
static ssize_t allowed(int fd, size_t len) {
    const char *wanted = getenv("DISK_WRITES");
    char how[16], part[1024], path[4096];
    long first, count;
    if (!wanted || !is_ours(fd, path, sizeof path)) return len;
    if (sscanf(wanted, "%15[^:]:%1023[^:]:%ld:%ld", how, part, &first, &count) != 4) return len;
    if (strcmp(part, "*") && !strstr(path, part)) return len;
    long at = written++;
    if (at < first || at >= first + count) return len;
    note(how, path);
    if (!strcmp(how, "SHORT")) return len > 1 ? len / 2 : len;
    errno = strcmp(how, "ENOSPC") ? EIO : ENOSPC;
    return -1;
}

/* Whether this sync is one of those that fail. */
static int fails(const char *path, const char *call) {
    const char *wanted = getenv("DISK_FAILS");
    char part[1024];
    long first, count;
    if (!wanted || sscanf(wanted, "%1023[^:]:%ld:%ld", part, &first, &count) != 3) return 0;
    if (strcmp(part, "*") && !strstr(path, part)) return 0;
    long at = seen++;
    if (at < first || at >= first + count) return 0;
    note(call, path);
    return 1;
}

/* Brings a file's pages to the disk: all of them or, if the process is killed meanwhile, none. */
static void write_dirty(int fd, struct entry *file, off_t size) {
    char path[64], name[4096], new[4096], bytes[PAGE];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(name, sizeof name, "%s/%lu", getenv("DISK_SHADOW"), (unsigned long)file->inode);
    snprintf(new, sizeof new, "%s/%lu.new", getenv("DISK_SHADOW"), (unsigned long)file->inode);
    int whole = real_open(path, O_RDONLY | O_CLOEXEC, 0);
    int shadow = real_open(new, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (whole < 0 || shadow < 0) die("sync");
    for (off_t page = 0; page < PAGES && page * PAGE < size; page++) {
        ssize_t len = pread(file->dirty[page] ? whole : file->shadow, bytes, PAGE, page * PAGE);
        if (len < 0 || real_pwrite(shadow, bytes, len, page * PAGE) != len) die("sync");
    }
    if (real_ftruncate(shadow, size) || rename(new, name)) die("sync");
    close(whole);
    close(file->shadow);
    file->shadow = shadow;
}

static int sync_file(int fd, int (*real)(int), const char *name_of_call) {
    char path[4096];
    if (!is_ours(fd, path, sizeof path)) return real(fd);
    pthread_mutex_lock(&lock);
    int failed = fails(path, name_of_call);
    struct entry *file = entry(fd);
    struct stat meta;
    if (file && fstat(fd, &meta) == 0) {
        if (!failed && !getenv("DISK_LIES")) write_dirty(fd, file, meta.st_size);
        memset(file->dirty, 0, PAGES);
    }
    pthread_mutex_unlock(&lock);
    if (failed) {
        errno = EIO;
        return -1;
    }
    return 0;
}

int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return sync_file(fd, real, "fdatasync");
}

int fsync(int fd) {
    REAL(int, "fsync", int);
    return sync_file(fd, real, "fsync");
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off_t at) {
    pthread_mutex_lock(&lock);
    struct entry *file = entry(fd);
    /* Before it is written: the process may be killed in between. */
    if (file) mark(file, at, at + len);
    ssize_t done = allowed(fd, len);
    if (done >= 0) done = real_pwrite(fd, bytes, done, at);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) { return pwrite64(fd, bytes, len, at); }

ssize_t write(int fd, const void *bytes, size_t len) {
    REAL(ssize_t, "write", int, const void *, size_t);
    char path[4096];
    if (!is_ours(fd, path, sizeof path)) return real(fd, bytes, len);
    pthread_mutex_lock(&lock);
    struct entry *file = entry(fd);
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (file && at >= 0) mark(file, at, at + len);
    ssize_t done = allowed(fd, len);
    if (done >= 0) done = real(fd, bytes, done);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate64(int fd, off_t len) {
    pthread_mutex_lock(&lock);
    struct entry *file = entry(fd);
    struct stat meta;
    if (file && fstat(fd, &meta) == 0) mark(file, len < meta.st_size ? len : meta.st_size, meta.st_size > len ? meta.st_size : len);
    int done = real_ftruncate(fd, len);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t len) { return ftruncate64(fd, len); }

/* An inode that was deleted may come back as another file, which is empty when it is opened first. */
static int opened(int fd) {
    struct stat meta;
    char path[4096];
    if (fd >= 0 && is_ours(fd, path, sizeof path) && fstat(fd, &meta) == 0 && S_ISREG(meta.st_mode) && meta.st_size == 0) {
        pthread_mutex_lock(&lock);
        struct entry *file = entry(fd);
        if (file) {
            memset(file->dirty, 0, PAGES);
            if (real_ftruncate(file->shadow, 0)) die("shadow");
        }
        pthread_mutex_unlock(&lock);
    }
    return fd;
}

static mode_t mode_of(int flags, va_list more) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return opened(real_open(path, flags, mode));
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = mode_of(flags, more);
    va_end(more);
    return opened(real_open(path, flags, mode));
}

/* Copies go through read and write, which are seen. */
ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t len, unsigned flags) {
    (void)in, (void)in_at, (void)out, (void)out_at, (void)len, (void)flags;
    errno = ENOSYS;
    return -1;
}

ssize_t sendfile64(int out, int in, off_t *at, size_t len) {
    (void)out, (void)in, (void)at, (void)len;
    errno = ENOSYS;
    return -1;
}

ssize_t sendfile(int out, int in, off_t *at, size_t len) { return sendfile64(out, in, at, len); }

int sync_file_range(int fd, off_t from, off_t len, unsigned flags) {
    REAL(int, "sync_file_range", int, off_t, off_t, unsigned);
    char path[4096];
    return is_ours(fd, path, sizeof path) ? 0 : real(fd, from, len, flags);
}

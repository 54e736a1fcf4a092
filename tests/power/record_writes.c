/* Records what a process, and every process it starts, changes on the disk below one folder: for LD_PRELOAD.

   EVALPIPE_POWER_ROOT is the folder, EVALPIPE_POWER_LOG the file the records go to. Every record is one append, so that
   those of several threads and processes keep apart. A change is recorded after it happened and a sync both before and after,
   so that a sync never covers what came while it was under way. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    uint32_t magic, kind;
    uint64_t ino;
    int64_t a, b;
    uint32_t n_one, n_two;
};

static char root[PATH_MAX];
static size_t n_root;
static int log_fd = -1;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("EVALPIPE_POWER_ROOT"), *log = getenv("EVALPIPE_POWER_LOG");
    if (!folder || !log || strlen(folder) >= sizeof root) return;
    strcpy(root, folder);
    n_root = strlen(root);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return;
    log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 700); /* out of the way of what counts descriptors */
    if (log_fd < 0) log_fd = fd;
    else syscall(SYS_close, fd);
}

static void record(char kind, uint64_t ino, int64_t a, int64_t b, const void *one, size_t n_one, const void *two, size_t n_two) {
    if (log_fd < 0) return;
    int before = errno;
    struct head head = {0x50574c31u, (uint32_t)kind, ino, a, b, (uint32_t)n_one, (uint32_t)n_two};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)one, n_one}, {(void *)two, n_two}};
    long n = syscall(SYS_writev, log_fd, parts, 3);
    if (n != (long)(sizeof head + n_one + n_two)) {
        static const char problem[] = "record_writes: a record was cut off\n";
        syscall(SYS_write, 2, problem, sizeof problem - 1);
        _exit(97);
    }
    errno = before;
}

static int below(const char *path) {
    return log_fd >= 0 && !strncmp(path, root, n_root) && (path[n_root] == '/' || path[n_root] == 0);
}

/* The path behind a descriptor; 0 where it is none below the root. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

/* The absolute path of a name, its folder resolved; 0 where it is not below the root. */
static int full_path(int at, const char *name, char *path) {
    char whole[2 * PATH_MAX + 2], folder[PATH_MAX];
    if (log_fd < 0) return 0;
    if (name[0] == '/') snprintf(whole, sizeof whole, "%s", name);
    else {
        char base[PATH_MAX];
        if (at == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, PATH_MAX - 1);
            if (n <= 0) return 0;
            base[n] = 0;
        }
        snprintf(whole, sizeof whole, "%s/%s", base, name);
    }
    size_t n = strlen(whole);
    while (n > 1 && whole[n - 1] == '/') whole[--n] = 0;
    char *slash = strrchr(whole, '/');
    if (!slash) return 0;
    *slash = 0;
    if (!realpath(slash == whole ? "/" : whole, folder)) return 0;
    if (strlen(folder) + strlen(slash + 1) + 2 > PATH_MAX) return 0;
    sprintf(path, "%s/%s", folder, slash + 1);
    return below(path);
}

static uint64_t inode(int fd) { struct stat s; return fstat(fd, &s) ? 0 : s.st_ino; }
static int is_regular(int fd) { struct stat s; return !fstat(fd, &s) && S_ISREG(s.st_mode); }
static uint64_t inode_at(const char *path) { struct stat s; return lstat(path, &s) ? 0 : s.st_ino; }

/* --- files that come to be */

static int opened(int fd, int flags, int was_there, const char *path) {
    int before = errno;
    if (fd >= 0 && path && is_regular(fd)) {
        if (!was_there && (flags & O_CREAT)) record('C', inode(fd), 0, 0, path, strlen(path), 0, 0);
        else if (flags & O_TRUNC) record('T', inode(fd), 0, 0, 0, 0, 0, 0);
    }
    errno = before;
    return fd;
}

#define MODE(flags) int mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, int); va_end(more); }
#define OPEN_AT(function, at, call) \
    char path[PATH_MAX]; int ours = (flags & (O_CREAT | O_TRUNC)) && full_path(at, name, path); \
    int was_there = ours && inode_at(path) != 0; \
    return opened(call, flags, was_there, ours ? path : 0);

int open(const char *name, int flags, ...) { MODE(flags) OPEN_AT(open, AT_FDCWD, REAL(open)(name, flags, mode)) }
int open64(const char *name, int flags, ...) { MODE(flags) OPEN_AT(open64, AT_FDCWD, REAL(open64)(name, flags, mode)) }
int openat(int at, const char *name, int flags, ...) { MODE(flags) OPEN_AT(openat, at, REAL(openat)(at, name, flags, mode)) }
int openat64(int at, const char *name, int flags, ...) { MODE(flags) OPEN_AT(openat64, at, REAL(openat64)(at, name, flags, mode)) }
int creat(const char *name, mode_t mode) { int flags = O_CREAT | O_TRUNC | O_WRONLY; OPEN_AT(creat, AT_FDCWD, REAL(creat)(name, mode)) }

FILE *fopen(const char *name, const char *how) {
    char path[PATH_MAX];
    int ours = how[0] != 'r' && full_path(AT_FDCWD, name, path);
    if (ours) { static const char problem[] = "record_writes: fopen for writing is not recorded\n"; syscall(SYS_write, 2, problem, sizeof problem - 1); _exit(98); }
    return REAL(fopen)(name, how);
}

/* --- bytes */

static void wrote(int fd, const void *data, ssize_t n, int64_t at) {
    char path[PATH_MAX];
    int before = errno;
    if (n > 0 && fd != log_fd && path_of(fd, path) && is_regular(fd)) {
        if (at < 0) at = lseek(fd, 0, SEEK_CUR) - n;
        record('W', inode(fd), at, 0, data, n, 0, 0);
    }
    errno = before;
}

ssize_t write(int fd, const void *data, size_t n) { ssize_t r = REAL(write)(fd, data, n); wrote(fd, data, r, -1); return r; }
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { ssize_t r = REAL(pwrite)(fd, data, n, at); wrote(fd, data, r, at); return r; }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { ssize_t r = REAL(pwrite64)(fd, data, n, at); wrote(fd, data, r, at); return r; }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t r = REAL(writev)(fd, parts, n);
    char path[PATH_MAX];
    if (r > 0 && path_of(fd, path) && is_regular(fd)) {
        int64_t at = lseek(fd, 0, SEEK_CUR) - r;
        ssize_t left = r;
        for (int i = 0; i < n && left > 0; i++) {
            ssize_t m = (ssize_t)parts[i].iov_len < left ? (ssize_t)parts[i].iov_len : left;
            wrote(fd, parts[i].iov_base, m, at);
            at += m; left -= m;
        }
    }
    return r;
}

static int resized(int r, int fd, int64_t size, char kind) {
    char path[PATH_MAX];
    int before = errno;
    if (!r && path_of(fd, path)) record(kind, inode(fd), size, 0, 0, 0, 0, 0);
    errno = before;
    return r;
}
int ftruncate(int fd, off_t size) { return resized(REAL(ftruncate)(fd, size), fd, size, 'T'); }
int ftruncate64(int fd, off64_t size) { return resized(REAL(ftruncate64)(fd, size), fd, size, 'T'); }
int posix_fallocate(int fd, off_t at, off_t n) { return resized(REAL(posix_fallocate)(fd, at, n), fd, at + n, 'G'); }
int posix_fallocate64(int fd, off64_t at, off64_t n) { return resized(REAL(posix_fallocate64)(fd, at, n), fd, at + n, 'G'); }
static int cut(int r, const char *name, int64_t size) {
    char path[PATH_MAX];
    if (!r && full_path(AT_FDCWD, name, path)) record('T', inode_at(path), size, 0, 0, 0, 0, 0);
    return r;
}
int truncate(const char *name, off_t size) { return cut(REAL(truncate)(name, size), name, size); }
int truncate64(const char *name, off64_t size) { return cut(REAL(truncate64)(name, size), name, size); }

/* --- syncs */

static int synced(int fd, int (*call)(int)) {
    static uint64_t count;
    char path[PATH_MAX];
    if (!path_of(fd, path)) return call(fd);
    uint64_t token = ((uint64_t)getpid() << 32) | (__sync_fetch_and_add(&count, 1) & 0xffffffffu);
    int folder = !is_regular(fd);
    uint64_t ino = inode(fd);
    record('s', ino, (int64_t)token, folder, path, strlen(path), 0, 0);
    int r = call(fd);
    if (!r) record('S', ino, (int64_t)token, folder, path, strlen(path), 0, 0);
    return r;
}
int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

/* --- names */

static void moved(char kind, const char *from, const char *to, uint64_t ino) {
    record(kind, ino, 0, 0, from, strlen(from), to, strlen(to));
}
#define MOVE(kind, at_from, at_to, call) \
    char a[PATH_MAX], b[PATH_MAX]; int ours = full_path(at_from, from, a) && full_path(at_to, to, b); \
    uint64_t ino = ours ? inode_at(a) : 0; int r = call; \
    if (!r && ours) moved(kind, a, b, ino); \
    return r;
int rename(const char *from, const char *to) { MOVE('R', AT_FDCWD, AT_FDCWD, REAL(rename)(from, to)) }
int renameat(int x, const char *from, int y, const char *to) { MOVE('R', x, y, REAL(renameat)(x, from, y, to)) }
int renameat2(int x, const char *from, int y, const char *to, unsigned flags) { MOVE('R', x, y, REAL(renameat2)(x, from, y, to, flags)) }
int link(const char *from, const char *to) { MOVE('L', AT_FDCWD, AT_FDCWD, REAL(link)(from, to)) }
int linkat(int x, const char *from, int y, const char *to, int flags) { MOVE('L', x, y, REAL(linkat)(x, from, y, to, flags)) }

#define NAME(kind, at, call) \
    char path[PATH_MAX]; int ours = full_path(at, name, path); int r = call; \
    if (!r && ours) record(kind, 0, 0, 0, path, strlen(path), 0, 0); \
    return r;
int unlink(const char *name) { NAME('U', AT_FDCWD, REAL(unlink)(name)) }
int unlinkat(int at, const char *name, int flags) { NAME((flags & AT_REMOVEDIR) ? 'D' : 'U', at, REAL(unlinkat)(at, name, flags)) }
int remove(const char *name) { struct stat s; int folder = !lstat(name, &s) && S_ISDIR(s.st_mode); NAME(folder ? 'D' : 'U', AT_FDCWD, REAL(remove)(name)) }
int rmdir(const char *name) { NAME('D', AT_FDCWD, REAL(rmdir)(name)) }
int mkdir(const char *name, mode_t mode) { NAME('M', AT_FDCWD, REAL(mkdir)(name, mode)) }
int mkdirat(int at, const char *name, mode_t mode) { NAME('M', at, REAL(mkdirat)(at, name, mode)) }

/* A disk that forgets what was not synced, fails when told, and can lie: a library for LD_PRELOAD.
 *
 * Of the files directly in the directory DISK_DIRECTORY it keeps in DISK_SHADOW what a power loss would
 * leave: a file's content as of its last fsync or fdatasync, and the directory's entries as of its last
 * fsync. The files themselves are what the running system sees.
 *
 *   DISK_SHADOW/tree/NAME      what there is after a power loss
 *   DISK_SHADOW/inodes/INODE   the same files by their number; linked into the tree when the directory is synced
 *   DISK_SHADOW/dirty/INODE    which blocks of a file were written since its last sync
 *   DISK_SHADOW/control        what goes wrong; see struct control. The test writes into it.
 *
 * Everything that must outlive the process is in these files, since the process is killed: after that the
 * page cache of a real system still holds what was written, and a later sync of another process writes it.
 * Memory maps of the directory's files are not followed: SQLite's -shm is one and needs no durability.
 * Not for files over 64 MiB.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 16384, FILES = 256 };

/* Numbers in the machine's byte order, at these places; the test writes them and reads what is counted. */
struct control {
    volatile uint32_t fail_syncs;   /* so many syncs of the files fail with EIO, then they work again */
    volatile uint32_t pass_syncs;   /* ... after so many more that work */
    volatile uint32_t lose_dirty;   /* a failed sync loses what was written, as ext4 does; else it stays dirty */
    volatile uint32_t no_space;     /* writes fail with ENOSPC */
    volatile uint32_t lie_about;    /* 1: syncs of files ending in -wal do nothing and say they worked; 2: of all */
    volatile uint32_t sync_takes;   /* so many microseconds */
    volatile uint32_t syncs;        /* syncs so far */
    volatile uint32_t failed;       /* calls that failed because they were told to */
    volatile uint32_t fail_on;      /* 0: any sync of a file may fail; 1: only of files ending in .db */
};

/* DISK_SHADOW/dirty/INODE */
struct dirty {
    volatile uint64_t smallest;     /* the smallest size since the last sync */
    volatile uint8_t block[BLOCKS]; /* 1: written since the last sync */
};

struct file {
    dev_t device;
    ino_t inode;
    bool ours;
    struct dirty *dirty;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX], shadow[PATH_MAX];
static dev_t directory_device;
static ino_t directory_inode;
static struct control *control;
static struct file files[FILES];
static int file_count;
static bool on;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void give_up(const char *what) {
    fprintf(stderr, "the disk: %s: %s\n", what, strerror(errno));
    abort();
}

static int real_open(const char *path, int flags, mode_t mode) {
    REAL(open64);
    return real(path, flags, mode);
}

static ssize_t real_pwrite(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    return real(fd, bytes, count, at);
}

static int real_ftruncate(int fd, off64_t size) {
    REAL(ftruncate64);
    return real(fd, size);
}

static int real_unlink(const char *path) {
    REAL(unlink);
    return real(path);
}

__attribute__((format(printf, 2, 3))) static void compose(char *path, const char *form, ...) {
    va_list rest;
    va_start(rest, form);
    int length = vsnprintf(path, PATH_MAX, form, rest);
    va_end(rest);
    if (length < 0 || length >= PATH_MAX) give_up("a path is too long");
}

static void shadow_path(char *path, const char *part, ino_t inode) {
    compose(path, "%s/%s/%lu", shadow, part, (unsigned long)inode);
}

static void *map_file(const char *path, size_t size) {
    int fd = real_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || real_ftruncate(fd, (off64_t)size)) give_up(path);
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) give_up("mmap");
    close(fd);
    return map;
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && !strcmp(text + length - tail, end);
}

/* The path of an open file; an empty one if it has none. */
static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static bool is_in_directory(const char *path) {
    size_t length = strlen(directory);
    return !strncmp(path, directory, length) && path[length] == '/' && !strchr(path + length + 1, '/');
}

/* The file behind a descriptor, if it is one of the directory's. To be called with the lock held. */
static struct file *file_of(int fd, struct stat64 *found) {
    if (fstat64(fd, found) || !S_ISREG(found->st_mode)) return NULL;
    for (int i = 0; i < file_count; i++)
        if (files[i].inode == found->st_ino && files[i].device == found->st_dev)
            return files[i].ours ? &files[i] : NULL;
    char path[PATH_MAX];
    path_of(fd, path);
    if (file_count == FILES) give_up("too many files");
    struct file *file = &files[file_count++];
    *file = (struct file){ .device = found->st_dev, .inode = found->st_ino, .ours = is_in_directory(path) };
    if (!file->ours) return NULL;
    shadow_path(path, "dirty", file->inode);
    file->dirty = map_file(path, sizeof(struct dirty));
    return file;
}

/* A file that is new: of one that had its number before, nothing holds any more. */
static void begin_file(int fd) {
    struct stat64 found;
    if (fstat64(fd, &found) || !S_ISREG(found.st_mode)) return;
    char path[PATH_MAX];
    shadow_path(path, "inodes", found.st_ino);
    real_unlink(path);
    for (int i = 0; i < file_count; i++)
        if (files[i].inode == found.st_ino && files[i].device == found.st_dev) files[i] = files[--file_count];
    struct file *file = file_of(fd, &found);
    if (file) memset(file->dirty, 0, sizeof *file->dirty);
}

static void mark(struct file *file, off64_t at, size_t count) {
    if (!count) return;
    off64_t last = (at + (off64_t)count - 1) / BLOCK;
    if (last >= BLOCKS) give_up("a file is too large");
    for (off64_t block = at / BLOCK; block <= last; block++) file->dirty->block[block] = 1;
}

static void mark_truncated(struct file *file, off64_t before, off64_t size) {
    if ((uint64_t)size < file->dirty->smallest) file->dirty->smallest = (uint64_t)size;
    /* What lies behind the new end is zero when the file grows again. */
    if (size < before) mark(file, size - size % BLOCK, (size_t)(before - size + size % BLOCK));
}

/* Brings what was written into the shadow. */
static void keep(int fd, struct file *file, const struct stat64 *now) {
    char path[PATH_MAX], bytes[BLOCK];
    shadow_path(path, "inodes", file->inode);
    int copy = real_open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    path_of(fd, path);
    /* The descriptor may be one that only writes. */
    int source = real_open(path, O_RDONLY | O_CLOEXEC, 0);
    if (copy < 0 || source < 0) give_up(path);
    struct stat64 kept;
    if (fstat64(copy, &kept)) give_up("fstat");
    if (file->dirty->smallest < (uint64_t)kept.st_size) real_ftruncate(copy, (off64_t)file->dirty->smallest);
    real_ftruncate(copy, now->st_size);
    /* At once: killed between two blocks, the next sync must not cut off the ones that were copied. */
    file->dirty->smallest = (uint64_t)now->st_size;
    for (int block = 0; block < BLOCKS; block++) {
        if (!file->dirty->block[block]) continue;
        ssize_t count = pread64(source, bytes, BLOCK, (off64_t)block * BLOCK);
        if (count > 0 && real_pwrite(copy, bytes, (size_t)count, (off64_t)block * BLOCK) != count) give_up("copying");
        file->dirty->block[block] = 0;
    }
    close(source);
    close(copy);
}

/* The directory's entries as they are now are the ones that last. */
static void keep_entries(void) {
    char from[PATH_MAX], to[PATH_MAX], fresh[PATH_MAX];
    DIR *entries = opendir(directory);
    if (!entries) give_up(directory);
    compose(fresh, "%s/fresh", shadow);
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (entry->d_type != DT_REG) continue;
        struct stat64 kept, linked;
        shadow_path(from, "inodes", entry->d_ino);
        int fd = real_open(from, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || fstat64(fd, &kept)) give_up(from);
        close(fd);
        compose(to, "%s/tree/%s", shadow, entry->d_name);
        if (!stat64(to, &linked) && linked.st_ino == kept.st_ino) continue;
        real_unlink(fresh);
        if (link(from, fresh)) give_up(fresh);
        REAL(rename);
        if (real(fresh, to)) give_up(to);
    }
    closedir(entries);
    compose(from, "%s/tree", shadow);
    entries = opendir(from);
    if (!entries) give_up(from);
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (entry->d_type != DT_REG) continue;
        compose(to, "%s/%s", directory, entry->d_name);
        if (!access(to, F_OK)) continue;
        compose(to, "%s/tree/%s", shadow, entry->d_name);
        real_unlink(to);
    }
    closedir(entries);
}

/* What lies in the directory when the disk is new lies there for good. */
static void begin(void) {
    DIR *entries = opendir(directory);
    if (!entries) give_up(directory);
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (entry->d_type != DT_REG) continue;
        char path[PATH_MAX];
        compose(path, "%s/%s", directory, entry->d_name);
        int fd = real_open(path, O_RDONLY | O_CLOEXEC, 0);
        struct stat64 found;
        struct file *file = fd < 0 ? NULL : file_of(fd, &found);
        if (!file) give_up(path);
        mark(file, 0, (size_t)found.st_size);
        keep(fd, file, &found);
        close(fd);
    }
    closedir(entries);
    keep_entries();
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("DISK_DIRECTORY"), *keeps = getenv("DISK_SHADOW");
    struct stat64 found;
    if (!dir || !keeps) return;
    if (!realpath(dir, directory) || !realpath(keeps, shadow) || stat64(directory, &found)) give_up(dir);
    directory_device = found.st_dev;
    directory_inode = found.st_ino;
    char path[PATH_MAX];
    const char *parts[] = { "tree", "inodes", "dirty" };
    bool is_new = false;
    for (int i = 0; i < 3; i++) {
        compose(path, "%s/%s", shadow, parts[i]);
        is_new |= !mkdir(path, 0700);
    }
    compose(path, "%s/control", shadow);
    control = map_file(path, sizeof *control);
    /* Killed before its entries were kept, a new disk is begun again. */
    compose(path, "%s/begun", shadow);
    if (is_new || access(path, F_OK)) {
        begin();
        close(real_open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    on = true;
}

/* Opening ----------------------------------------------------------------------------------------- */

static int open_at(int at, const char *path, int flags, mode_t mode) {
    REAL(openat64);
    if (!on || !(flags & (O_CREAT | O_TRUNC))) return real(at, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat64 before, now;
    bool was_there = !fstatat64(at, path, &before, 0);
    int fd = real(at, path, flags, mode);
    if (fd >= 0) {
        if (!was_there) begin_file(fd);
        struct file *file = file_of(fd, &now);
        if (file && (flags & O_TRUNC) && was_there) mark_truncated(file, before.st_size, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE_OF(flags)
    return open_at(at, path, flags | O_LARGEFILE, mode);
}

int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC | O_LARGEFILE, mode);
}

/* Writing ----------------------------------------------------------------------------------------- */

/* Runs `call` on a file of ours under the lock, after noting that it writes `count` bytes at `at`
 * (or at the descriptor's own place, if that is negative). */
#define WRITE(fd, at, count, call) \
    if (!on) return call; \
    pthread_mutex_lock(&lock); \
    struct stat64 found; \
    struct file *file = file_of(fd, &found); \
    ssize_t written; \
    if (file && control->no_space) { \
        control->failed++; \
        errno = ENOSPC; \
        written = -1; \
    } else { \
        if (file) { \
            off64_t place = (at) >= 0 ? (off64_t)(at) \
                : fcntl(fd, F_GETFL) & O_APPEND ? found.st_size : lseek64(fd, 0, SEEK_CUR); \
            mark(file, place, count); \
        } \
        written = call; \
    } \
    int code = errno; \
    pthread_mutex_unlock(&lock); \
    errno = code; \
    return written;

/* Descriptors that are no files, such as sockets, must not wait for each other. */
static bool is_file(int fd) {
    struct stat64 found;
    return on && !fstat64(fd, &found) && S_ISREG(found.st_mode);
}

static size_t total(const struct iovec *parts, int count) {
    size_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    if (!is_file(fd)) return real(fd, bytes, count);
    WRITE(fd, (off64_t)-1, count, real(fd, bytes, count))
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (!is_file(fd)) return real(fd, parts, count);
    WRITE(fd, (off64_t)-1, total(parts, count), real(fd, parts, count))
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    WRITE(fd, at, count, real_pwrite(fd, bytes, count, at))
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    WRITE(fd, at, count, real_pwrite(fd, bytes, count, at))
}

static int truncate_file(int fd, off64_t size) {
    if (!on) return real_ftruncate(fd, size);
    pthread_mutex_lock(&lock);
    struct stat64 found;
    struct file *file = file_of(fd, &found);
    int failed = 0;
    if (file && control->no_space && size > found.st_size) {
        control->failed++;
        errno = ENOSPC;
        failed = -1;
    } else {
        if (file) mark_truncated(file, found.st_size, size);
        failed = real_ftruncate(fd, size);
    }
    int code = errno;
    pthread_mutex_unlock(&lock);
    errno = code;
    return failed;
}

int ftruncate(int fd, off_t size) { return truncate_file(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_file(fd, size); }

static int allocate(int fd, off64_t at, off64_t count) {
    REAL(posix_fallocate64);
    struct stat64 found;
    pthread_mutex_lock(&lock);
    int code = on && file_of(fd, &found) && control->no_space ? ENOSPC : real(fd, at, count);
    if (code == ENOSPC && on) control->failed++;
    pthread_mutex_unlock(&lock);
    return code;
}

int posix_fallocate(int fd, off_t at, off_t count) { return allocate(fd, at, count); }
int posix_fallocate64(int fd, off64_t at, off64_t count) { return allocate(fd, at, count); }

int fallocate64(int fd, int mode, off64_t at, off64_t count) {
    REAL(fallocate64);
    struct stat64 found;
    pthread_mutex_lock(&lock);
    bool refused = on && file_of(fd, &found) && control->no_space;
    if (refused) control->failed++;
    pthread_mutex_unlock(&lock);
    if (!refused) return real(fd, mode, at, count);
    errno = ENOSPC;
    return -1;
}

int fallocate(int fd, int mode, off_t at, off_t count) { return fallocate64(fd, mode, at, count); }

/* Syncing ----------------------------------------------------------------------------------------- */

static bool must_fail(int fd) {
    if (!control->fail_syncs) return false;
    if (control->fail_on) {
        char path[PATH_MAX];
        path_of(fd, path);
        if (!ends_with(path, ".db")) return false;
    }
    if (control->pass_syncs) {
        control->pass_syncs--;
        return false;
    }
    control->fail_syncs--;
    return true;
}

static bool is_lied_about(int fd) {
    char path[PATH_MAX];
    path_of(fd, path);
    return control->lie_about == 2 || (control->lie_about == 1 && ends_with(path, "-wal"));
}

/* -1 failed; 0 done; 1 none of ours. The disk itself is not waited for: the shadow is what counts, and a
 * test doesn't depend on what else the machine's disk has to do. */
static int sync_file(int fd) {
    if (!on) return 1;
    struct stat64 found;
    int result = 1;
    pthread_mutex_lock(&lock);
    struct file *file = file_of(fd, &found);
    bool is_directory = !file && !fstat64(fd, &found) && S_ISDIR(found.st_mode) &&
        found.st_ino == directory_inode && found.st_dev == directory_device;
    if (file || is_directory) {
        control->syncs++;
        result = 0;
        if (must_fail(fd)) {
            control->failed++;
            if (file && control->lose_dirty) {
                memset((void *)file->dirty->block, 0, BLOCKS);
                file->dirty->smallest = (uint64_t)found.st_size;
            }
            errno = EIO;
            result = -1;
        } else if (is_directory) {
            if (control->lie_about != 2) keep_entries();
        } else if (!is_lied_about(fd)) {
            keep(fd, file, &found);
        }
    }
    int code = errno;
    pthread_mutex_unlock(&lock);
    if (result != 1) usleep(control->sync_takes);
    errno = code;
    return result;
}

int fsync(int fd) {
    REAL(fsync);
    int result = sync_file(fd);
    return result == 1 ? real(fd) : result;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    int result = sync_file(fd);
    return result == 1 ? real(fd) : result;
}

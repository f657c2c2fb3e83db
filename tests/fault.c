// Fails one file operation below a folder: loaded with LD_PRELOAD by test_faults.py.
// FAULT_FOLDER is the folder. FAULT_CONTROL is a file of 64-bit integers that all processes map: the kind of the operation
// that fails (-1: none), its number from 1, its errno (0: SIGKILL), then a counter of each kind.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { OPEN, WRITE, FLUSH, RENAME, UNLINK, MKDIR, READ, KINDS };

static volatile long *control;
static const char *folder;

__attribute__((constructor)) static void map_control(void) {
  folder = getenv("FAULT_FOLDER");
  int descriptor = open(getenv("FAULT_CONTROL"), O_RDWR | O_CLOEXEC);
  control = mmap(0, (3 + KINDS) * sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
}

static int fails(enum kind kind, const char *path) {
  if (!control || !folder || strncmp(path, folder, strlen(folder))) return 0;
  if (__sync_add_and_fetch(control + 3 + kind, 1) != control[1] || kind != control[0]) return 0;
  if (!control[2]) kill(getpid(), SIGKILL);
  errno = control[2];
  return 1;
}

static int fails_at(enum kind kind, int base, const char *name) {
  char link[64], path[2 * PATH_MAX] = "";
  if (!name) return 0;
  if (name[0] != '/') {
    snprintf(link, sizeof link, base == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", base);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = '/';
    path[length + 1] = 0;
  }
  strncat(path, name, PATH_MAX);
  return fails(kind, path);
}

static int fails_on(enum kind kind, int descriptor) {
  char link[64], path[PATH_MAX + 1] = "";
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX);
  errno = before;
  return length > 0 && fails(kind, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(type, name, parameters, arguments, failing) \
  type name parameters { return (failing) ? -1 : REAL(name) arguments; }
#define OPENS(base, flags) fails_at((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? OPEN : READ, base, path)
#define WITH_MODE(flags) mode_t mode = 0; if ((flags) & O_CREAT) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }

int open(const char *path, int flags, ...) { WITH_MODE(flags) return OPENS(AT_FDCWD, flags) ? -1 : REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { WITH_MODE(flags) return OPENS(AT_FDCWD, flags) ? -1 : REAL(open64)(path, flags, mode); }
int openat(int base, const char *path, int flags, ...) { WITH_MODE(flags) return OPENS(base, flags) ? -1 : REAL(openat)(base, path, flags, mode); }
int openat64(int base, const char *path, int flags, ...) { WITH_MODE(flags) return OPENS(base, flags) ? -1 : REAL(openat64)(base, path, flags, mode); }
FILE *fopen(const char *path, const char *mode) { return fails_at(strpbrk(mode, "wa+") ? OPEN : READ, AT_FDCWD, path) ? 0 : REAL(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) { return fails_at(strpbrk(mode, "wa+") ? OPEN : READ, AT_FDCWD, path) ? 0 : REAL(fopen64)(path, mode); }
WRAP(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), fails_on(WRITE, fd))
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), fails_on(WRITE, fd))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), fails_on(WRITE, fd))
WRAP(int, fsync, (int fd), (fd), fails_on(FLUSH, fd))
WRAP(int, syncfs, (int fd), (fd), fails_on(FLUSH, fd))
WRAP(int, rename, (const char *old, const char *new), (old, new), fails_at(RENAME, AT_FDCWD, new))
WRAP(int, renameat, (int a, const char *old, int b, const char *new), (a, old, b, new), fails_at(RENAME, b, new))
WRAP(int, unlink, (const char *path), (path), fails_at(UNLINK, AT_FDCWD, path))
WRAP(int, unlinkat, (int base, const char *path, int flags), (base, path, flags), fails_at(UNLINK, base, path))
WRAP(int, rmdir, (const char *path), (path), fails_at(UNLINK, AT_FDCWD, path))
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), fails_at(MKDIR, AT_FDCWD, path))

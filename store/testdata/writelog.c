// A library for LD_PRELOAD that records in $WRITELOG what a process does to its
// ledger file and SQLite's files beside it, in order: see crash_linux_test.go.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int out = -1;
static char file[4096]; // by descriptor: as kind says

__attribute__((constructor)) static void start(void) {
	out = open(getenv("WRITELOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
}

// kind is 1 for the ledger, 2 for its -wal, 3 for its -journal, 0 for others.
static char kind(const char *path) {
	static const char *ends[] = {".db", ".db-wal", ".db-journal"};
	for (int i = 0; i < 3; i++) {
		size_t n = strlen(path), m = strlen(ends[i]);
		if (n > m && !strcmp(path + n - m, ends[i]))
			return i + 1;
	}
	return 0;
}

static void record(char op, char kind, int64_t offset, const void *data, uint32_t size) {
	if (kind == 0)
		return;
	char *b = malloc(14 + size);
	b[0] = op;
	b[1] = kind;
	memcpy(b + 2, &offset, 8);
	memcpy(b + 10, &size, 4);
	memcpy(b + 14, data, size);
	if (write(out, b, 14 + size) != (ssize_t)(14 + size))
		abort();
	free(b);
}

static int opened(int fd, const char *path) {
	if (fd >= (int)sizeof file)
		abort();
	if (fd >= 0)
		file[fd] = kind(path);
	return fd;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name) \
	int name(const char *path, int flags, ...) { \
		va_list args; \
		va_start(args, flags); \
		mode_t mode = va_arg(args, mode_t); \
		va_end(args); \
		return opened(REAL(name)(path, flags, mode), path); \
	}
#define PWRITE(name, off) \
	ssize_t name(int fd, const void *data, size_t size, off at) { \
		record('W', file[fd], at, data, size); \
		return REAL(name)(fd, data, size, at); \
	}
#define TRUNCATE(name, off) \
	int name(int fd, off size) { \
		record('T', file[fd], size, "", 0); \
		return REAL(name)(fd, size); \
	}
#define SYNC(name) \
	int name(int fd) { \
		int err = REAL(name)(fd); \
		record('S', file[fd], 0, "", 0); \
		return err; \
	}
OPEN(open)
OPEN(open64)
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
	record('U', kind(path), 0, "", 0);
	return REAL(unlink)(path);
}

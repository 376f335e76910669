// See quick.go for what this is for.

#define _GNU_SOURCE
#include "quick.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct quick_rest quick_rest;

// Only these C libraries give a constructor the arguments of the program.
#if defined(__GLIBC__) || defined(__APPLE__)

enum { MAX_LINE = 4096, MAX_OUTPUT = 1 << 20 };

static int conn = -1; // to the daemon

#ifndef MSG_NOSIGNAL // macOS: a property of the socket
#define MSG_NOSIGNAL 0
#endif

// reader is what has come from the daemon and was not taken yet.
static struct {
	char bytes[64 << 10];
	size_t from, to;
} reader;

static volatile sig_atomic_t interrupted;

// on_interrupt ends the reading, wherever it is.
static void on_interrupt(int sig) {
	int saved = errno;
	(void)sig;
	interrupted = 1;
	shutdown(conn, SHUT_RDWR);
	errno = saved;
}

// write_all reports whether it has written all n bytes.
static int write_all(int fd, const char *p, size_t n) {
	while (n > 0) {
		ssize_t wrote = write(fd, p, n);
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return 0;
		p += wrote;
		n -= (size_t)wrote;
	}
	return 1;
}

// fill reads more and reports whether there was any.
static int fill(void) {
	ssize_t got;
	reader.from = reader.to = 0;
	do
		got = read(conn, reader.bytes, sizeof reader.bytes);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		return 0;
	reader.to = (size_t)got;
	return 1;
}

// read_line reads a line without its end and reports whether there was a whole
// one that is not too long.
static int read_line(char line[MAX_LINE]) {
	size_t n = 0;
	for (;;) {
		if (reader.from == reader.to && !fill())
			return 0;
		char c = reader.bytes[reader.from++];
		if (c == '\n')
			break;
		if (n == MAX_LINE - 1)
			return 0;
		line[n++] = c;
	}
	if (n > 0 && line[n - 1] == '\r')
		n--;
	line[n] = 0;
	return 1;
}

static int read_all(char *p, size_t n) {
	while (n > 0) {
		if (reader.from == reader.to && !fill())
			return 0;
		size_t some = reader.to - reader.from;
		if (some > n)
			some = n;
		memcpy(p, reader.bytes + reader.from, some);
		reader.from += some;
		p += some;
		n -= some;
	}
	return 1;
}

// find_socket writes the path of the daemon's socket. See Home in quick.go.
static int find_socket(const char *home, char *path, size_t size) {
	const char *base;
	int n;
	if (!home || !*home)
		home = getenv("BALANCE_HOME");
	if (home && *home) {
		n = snprintf(path, size, "%s/balance.sock", home);
	} else if ((base = getenv("XDG_STATE_HOME")) && *base == '/') {
		n = snprintf(path, size, "%s/balance/balance.sock", base);
	} else if ((base = getenv("HOME")) && *base) {
		n = snprintf(path, size, "%s/.local/state/balance/balance.sock", base);
	} else {
		return 0;
	}
	return n > 0 && (size_t)n < size;
}

// dial connects to the daemon. The socket is closed in what this program
// executes; nothing else runs yet that could execute anything.
static int dial(const char *home) {
	struct sockaddr_un addr;
	memset(&addr, 0, sizeof addr);
	addr.sun_family = AF_UNIX;
	if (!find_socket(home, addr.sun_path, sizeof addr.sun_path))
		return 0;
	conn = socket(AF_UNIX, SOCK_STREAM, 0);
	if (conn <= STDERR_FILENO) // none, or in the place of an output that is closed
		return 0;
#ifdef SO_NOSIGPIPE
	setsockopt(conn, SOL_SOCKET, SO_NOSIGPIPE, &(int){1}, sizeof(int));
#endif
	return connect(conn, (struct sockaddr *)&addr, sizeof addr) == 0;
}

// post submits the command: its words, separated by NUL. HTTP/1.0 has the answer
// end with the connection, so that its body is not divided once more.
static int post(char **command) {
	size_t size = 0;
	for (char **word = command; *word; word++)
		size += strlen(*word) + 1;
	char *request = malloc(size + 256);
	if (!request)
		return 0;
	int head = snprintf(request, 256, "POST /v1/quick HTTP/1.0\r\nHost: balance\r\nContent-Length: %zu\r\n\r\n", size - 1);
	char *p = request + head;
	for (char **word = command; *word; word++)
		p = stpcpy(p, *word) + 1;
	size_t all = (size_t)head + size - 1;
	int ok = send(conn, request, all, MSG_NOSIGNAL) == (ssize_t)all;
	free(request);
	return ok;
}

// read_head reads the head of the answer, and from it the run's id. It reports
// whether the head came to its end.
static int read_head(void) {
	static const char name[] = "Balance-Run: ";
	char line[MAX_LINE];
	while (read_line(line)) {
		if (!*line)
			return 1;
		if (!strncmp(line, name, sizeof name - 1) && strlen(line) - (sizeof name - 1) < sizeof quick_rest.run)
			strcpy(quick_rest.run, line + sizeof name - 1);
	}
	return 0;
}

// show writes an output frame.
static int show(int fd, size_t n) {
	char *out = malloc(n ? n : 1);
	int ok = out && read_all(out, n) && write_all(fd, out, n);
	free(out);
	return ok;
}

// follow takes frames until there is one that is not for here. It exits with the
// run.
static void follow(void) {
	char line[MAX_LINE], kind;
	unsigned long long seq;
	unsigned n;
	while (read_line(line) && sscanf(line, "%c %20llu %9u", &kind, &seq, &n) == 3) {
		switch (kind) {
		case 's':
			break;
		case 'o':
		case 'e':
			if (n > MAX_OUTPUT || !show(kind == 'o' ? STDOUT_FILENO : STDERR_FILENO, n))
				return;
			break;
		case 'x':
			_exit((int)(n & 0xff));
		default:
			return;
		}
		quick_rest.last = seq;
	}
}

// has_nobody reports whether a descriptor is a device that has nothing to say,
// like /dev/null.
static int has_nobody(int fd) {
	struct stat info;
	return fstat(fd, &info) == 0 && S_ISCHR(info.st_mode) && !isatty(fd);
}

// quick runs before the rest of the program has begun, and may be all of it.
__attribute__((constructor)) static void quick(int argc, char **argv, char **envp) {
	const char *home = NULL;
	char **arg = argv + 1, **end = argv + argc;
	int no_stdin = 0;
	(void)envp;
	if (end - arg > 2 && !strcmp(arg[0], "--home")) {
		home = arg[1];
		arg += 2;
	}
	if (end - arg < 3 || strcmp(arg[0], "run"))
		return;
	if (!strcmp(*++arg, "-n")) {
		no_stdin = 1;
		arg++;
	}
	if (end - arg < 2 || strcmp(*arg++, "--"))
		return;
	if ((!no_stdin && !has_nobody(STDIN_FILENO)) || isatty(STDERR_FILENO))
		return;

	struct sigaction action, before;
	memset(&action, 0, sizeof action);
	action.sa_handler = on_interrupt;
	if (dial(home)) {
		sigaction(SIGINT, &action, &before);
		if (post(arg)) {
			if (!read_head())
				quick_rest.unsure = 1;
			else if (*quick_rest.run)
				follow();
		}
		sigaction(SIGINT, &before, NULL);
		quick_rest.interrupted = interrupted;
	}
	if (conn >= 0)
		close(conn);
}

#endif

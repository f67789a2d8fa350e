/*
 * Lets User-mode Linux up to 6.12 run on a CPU whose extended state is larger than its buffer for it (AMX).
 *
 * It saves and restores a traced process's registers through PTRACE_GETREGSET and PTRACE_SETREGSET of
 * NT_X86_XSTATE. A set that is shorter than the CPU's state fails with EFAULT, and then it panics. This library,
 * preloaded, reads the whole state first, lays the caller's part over it and sets all of it. Where the caller's
 * buffer is large enough, it changes nothing.
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEK_FIRST = 1, PEEK_LAST = 3, GET_REGISTERS = 0x4204, SET_REGISTERS = 0x4205 };

/* Offset of XSTATE_BV, and the bits of AMX in it (Intel SDM volume 1, 13.4.2): that state is never set here. */
enum { STATE_BITS = 512 };
static const uint64_t AMX = (uint64_t)3 << 17;

static long set_state(long pid, void *type, const struct iovec *part)
{
	static __thread unsigned char buffer[16384] __attribute__((aligned(64)));
	struct iovec whole = { buffer, sizeof buffer };
	uint64_t bits;

	if (syscall(SYS_ptrace, (long)GET_REGISTERS, pid, type, &whole) != 0 || whole.iov_len <= part->iov_len)
		return syscall(SYS_ptrace, (long)SET_REGISTERS, pid, type, part);
	memcpy(buffer, part->iov_base, part->iov_len);
	memcpy(&bits, buffer + STATE_BITS, sizeof bits);
	bits &= ~AMX;
	memcpy(buffer + STATE_BITS, &bits, sizeof bits);
	return syscall(SYS_ptrace, (long)SET_REGISTERS, pid, type, &whole);
}

long ptrace(int request, ...)
{
	va_list arguments;
	long pid, result, word;
	void *address, *data;

	va_start(arguments, request);
	pid = va_arg(arguments, int);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == SET_REGISTERS && (uintptr_t)address == NT_X86_XSTATE)
		return set_state(pid, address, data);
	if (request >= PEEK_FIRST && request <= PEEK_LAST) {
		/* The system call stores the word, the C function returns it. */
		result = syscall(SYS_ptrace, (long)request, pid, address, &word);
		if (result != 0)
			return -1;
		errno = 0;
		return word;
	}
	return syscall(SYS_ptrace, (long)request, pid, address, data);
}

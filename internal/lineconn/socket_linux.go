package lineconn

import (
	"syscall"
	"unsafe"
)

// Options that package syscall lacks on some processors. Their numbers are the same on all.
const tcpUserTimeout, tcpRTOMax = 18, 44

// setOptions sets the options that connections inherit from a listening socket. It returns each failure, with "; ".
func setOptions(raw syscall.RawConn) (missing string) {
	raw.Control(func(fd uintptr) {
		set := func(level, option, value int, failure string) {
			if err := syscall.SetsockoptInt(int(fd), level, option, value); err != nil {
				missing += failure + ": " + err.Error() + "; "
			}
		}
		// In bytes. The kernel doubles them for its own bookkeeping, and may exceed the send buffer by 64 KiB.
		set(syscall.SOL_SOCKET, syscall.SO_SNDBUF, 64<<10, "cannot limit the send buffers (SO_SNDBUF)")
		set(syscall.SOL_SOCKET, syscall.SO_RCVBUF, 24<<10, "cannot limit the receive buffers (SO_RCVBUF)")
		// Otherwise the kernel takes urgent bytes, such as those of telnet's synch, out of the middle of a command.
		set(syscall.SOL_SOCKET, syscall.SO_OOBINLINE, 1, "cannot read urgent input in order (SO_OOBINLINE)")
		// The kernel gives up on a peer after 15 retransmissions without an answer. If they are at most 4000 ms apart,
		// that takes about 50 s. Before Linux 6.15, a timeout of 50 s does the same, but also disconnects a peer that
		// reads too little to reopen its receive window.
		if syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpRTOMax, 4000) != nil {
			set(syscall.IPPROTO_TCP, tcpUserTimeout, 50_000,
				"cannot notice in a minute that a client has vanished (TCP_USER_TIMEOUT)")
		}
	})
	return missing
}

// writeNow writes as much of p, which is not empty, as the kernel accepts immediately, and returns how many bytes that
// is. No other goroutine may write to the socket. A raw system call from Control saves 10% of the time of an
// announcement: it skips the write lock of package net, and does not tell the scheduler of a call that never waits.
func writeNow(raw syscall.RawConn, p []byte) (n int) {
	if raw == nil {
		return 0
	}
	raw.Control(func(fd uintptr) { // not called if the socket is closed
		written, _, _ := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		n = max(0, int(written)) // written is -1 if there is an error
	})
	return n
}

// unsentBytes returns how many written bytes the peer has not acknowledged yet, or 0 if that is unknown.
func unsentBytes(raw syscall.RawConn) int {
	var n int32
	if raw != nil {
		raw.Control(func(fd uintptr) {
			syscall.RawSyscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
		})
	}
	return int(n)
}

package lineconn

import (
	"errors"
	"net"
	"syscall"
	"time"
	"unsafe"
)

const (
	// What the kernel holds for a peer, in bytes; it takes twice as much, for its own bookkeeping, and up to 64 KiB more
	// than that to send.
	sendBuffer    = 64 << 10
	receiveBuffer = 24 << 10

	// userTimeout is how long a peer may confirm nothing of what it was sent, or have no room for more, before the
	// kernel gives it up.
	userTimeout = 50 * time.Second

	tcpUserTimeout = 18 // TCP_USER_TIMEOUT, which package syscall lacks on some processors
)

// listenConfig sets the options on the listening socket: what it accepts inherits them, without system calls for each.
func listenConfig() net.ListenConfig {
	set := func(_, _ string, raw syscall.RawConn) error {
		var errs []error
		err := raw.Control(func(fd uintptr) {
			for _, o := range []struct{ level, name, value int }{
				{syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer},
				{syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer},
				{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int(keepAliveIdle.Seconds())},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, int(keepAliveInterval.Seconds())},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveCount},
				{syscall.IPPROTO_TCP, tcpUserTimeout, int(userTimeout.Milliseconds())},
			} {
				errs = append(errs, syscall.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		})
		return errors.Join(append(errs, err)...)
	}
	return net.ListenConfig{Control: set, KeepAlive: -1} // none of package net's own
}

// newTryWrite makes a tryWrite, which allocates nothing. Control, unlike RawConn.Write, does not see to it that nobody
// else writes, and a raw system call does not tell the scheduler, which need not know of a call that never waits: both
// are faster for it.
func newTryWrite() tryWrite {
	var p []byte
	var n int
	call := func(fd uintptr) {
		written, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno == 0 {
			n = int(written)
		}
	}
	return func(raw syscall.RawConn, bytes []byte) int {
		p, n = bytes, 0
		if raw != nil {
			raw.Control(call) // which is not called if there is an error
		}
		p = nil
		return n
	}
}

// unsentBytes is how much of what was written the peer has not confirmed yet.
func unsentBytes(raw syscall.RawConn) int {
	var n int32 // stays 0 if there is an error
	if raw != nil {
		raw.Control(func(fd uintptr) {
			syscall.RawSyscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
		})
	}
	return int(n)
}

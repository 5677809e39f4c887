package lineconn

import (
	"errors"
	"net"
	"syscall"
	"unsafe"
)

const (
	// What the kernel holds for a peer, in bytes; it takes twice as much, for its own bookkeeping, and up to 64 KiB more
	// than that to send.
	sendBuffer    = 64 << 10
	receiveBuffer = 24 << 10

	// The kernel gives up a peer that confirms nothing, not even that it has no room, when it has repeated what it sent
	// 15 times: after some 50 s, since it waits for no more than these ms between. Before Linux 6.15, which cannot wait
	// less than 120 s, userTimeout ms do that; but they also give up one that takes little at a time.
	tcpRTOMax, rtoMax           = 44, 4000 // TCP_RTO_MAX_MS
	tcpUserTimeout, userTimeout = 18, 50_000
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
			} {
				errs = append(errs, syscall.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
			if syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpRTOMax, rtoMax) != nil {
				errs = append(errs, syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, userTimeout))
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

package lineconn

import (
	"errors"
	"syscall"
	"unsafe"
)

const (
	// The kernel's buffers for a peer, in bytes. The kernel doubles these values for its own bookkeeping, and may
	// exceed the send buffer by 64 KiB.
	sendBuffer    = 64 << 10
	receiveBuffer = 24 << 10

	// The kernel gives up on a peer that acknowledges nothing after 15 retransmissions. If they are at most rtoMax ms
	// apart, that takes about 50 s. Before Linux 6.15, userTimeout ms do the same, but they also disconnect a peer that
	// reads too little to reopen its receive window.
	tcpRTOMax, rtoMax           = 44, 4000 // TCP_RTO_MAX_MS
	tcpUserTimeout, userTimeout = 18, 50_000
)

// setOptions sets the options of a listening socket, which its connections inherit.
func setOptions(network, address string, raw syscall.RawConn) error {
	var sendErr, receiveErr, timeoutErr error
	err := raw.Control(func(fd uintptr) {
		sendErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer)
		receiveErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveBuffer)
		timeoutErr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpRTOMax, rtoMax)
		if timeoutErr != nil {
			timeoutErr = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, userTimeout)
		}
	})
	return errors.Join(err, sendErr, receiveErr, timeoutErr)
}

// writeNow writes as much of p, which is not empty, as the kernel accepts immediately, and returns how many bytes that
// is. No other goroutine may write to the socket. A raw system call from Control saves 10% of the time of an
// announcement: it skips the write lock of package net, and does not tell the scheduler of a call that never waits.
func writeNow(raw syscall.RawConn, p []byte) (n int) {
	if raw == nil {
		return 0
	}
	raw.Control(func(fd uintptr) { // not called if the socket is closed
		written, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		if errno == 0 {
			n = int(written)
		}
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

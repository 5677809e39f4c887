package lineconn

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"
)

// An option of a listening socket, which its connections inherit.
type option struct {
	level, number, value int
	failure              string  // what a warning says if the option cannot be set
	fallback             *option // set if the option cannot be set, or nil
}

// Options that package syscall does not have on all processors. Their numbers are the same on all.
const tcpUserTimeout, tcpRTOMax = 18, 44

// options returns the options for untrusted peers.
func options() []option {
	const socket, tcp = syscall.SOL_SOCKET, syscall.IPPROTO_TCP
	return []option{
		// The kernel's buffers for a peer, in bytes. The kernel doubles these values for its own bookkeeping, and may
		// exceed the send buffer by 64 KiB.
		{socket, syscall.SO_SNDBUF, 64 << 10, "cannot limit the send buffers (SO_SNDBUF)", nil},
		{socket, syscall.SO_RCVBUF, 24 << 10, "cannot limit the receive buffers (SO_RCVBUF)", nil},
		// Otherwise the kernel takes urgent bytes, such as those of telnet's synch, out of the middle of a command.
		{socket, syscall.SO_OOBINLINE, 1, "cannot read urgent input in order (SO_OOBINLINE)", nil},
		// The kernel gives up on a peer that acknowledges nothing after 15 retransmissions. If they are at most 4 s
		// apart, that takes about 50 s. Before Linux 6.15, a timeout of 50 s does the same, but also disconnects a peer
		// that reads too little to reopen its receive window. Both are in ms.
		{tcp, tcpRTOMax, 4000, "", &option{
			tcp, tcpUserTimeout, 50_000, "cannot notice in a minute that a client has vanished (TCP_USER_TIMEOUT)", nil,
		}},
	}
}

// setOptions sets the options of a listening socket. It returns an error for each that cannot be set, all joined.
func setOptions(raw syscall.RawConn, options []option) error {
	var failures []error
	raw.Control(func(fd uintptr) {
		for _, o := range options {
			err := syscall.SetsockoptInt(int(fd), o.level, o.number, o.value)
			if err != nil && o.fallback != nil {
				o = *o.fallback
				err = syscall.SetsockoptInt(int(fd), o.level, o.number, o.value)
			}
			if err != nil {
				failures = append(failures, fmt.Errorf("%s: %w", o.failure, err))
			}
		}
	})
	return errors.Join(failures...)
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

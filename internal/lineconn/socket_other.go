//go:build !linux

package lineconn

import (
	"net"
	"syscall"
)

// listenConfig has the keep-alive set for each connection that is accepted. The kernel's buffers stay as they are.
func listenConfig() net.ListenConfig {
	return net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
}

// newTryWrite makes a tryWrite that leaves all to patient writes, so that each message takes a goroutine for as long as
// it is written.
func newTryWrite() tryWrite {
	return func(syscall.RawConn, []byte) int { return 0 }
}

// unsentBytes is unknown here.
func unsentBytes(syscall.RawConn) int { return 0 }

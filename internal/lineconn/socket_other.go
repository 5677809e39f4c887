//go:build !linux

package lineconn

import "syscall"

// setOptions sets nothing. The kernel's buffers keep their default sizes.
func setOptions(network, address string, raw syscall.RawConn) error { return nil }

// writeNow writes nothing, so that blocking writes do everything. Each message takes a goroutine while it is written.
func writeNow(raw syscall.RawConn, p []byte) int { return 0 }

// unsentBytes returns 0, because the number is unknown.
func unsentBytes(raw syscall.RawConn) int { return 0 }

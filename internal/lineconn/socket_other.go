//go:build !linux

package lineconn

import "syscall"

// setOptions sets nothing.
func setOptions(syscall.RawConn) (missing []string) { return nil }

// writeNow writes nothing, so that blocking writes do everything. Each message takes a goroutine while it is written.
func writeNow(syscall.RawConn, []byte) int { return 0 }

// unsentBytes returns 0, because the number is unknown.
func unsentBytes(syscall.RawConn) int { return 0 }

//go:build !linux

package lineconn

import "syscall"

type option struct{}

// options returns none, so that setOptions has nothing to set.
func options() []option                                      { return nil }
func setOptions(raw syscall.RawConn, options []option) error { return nil }

// writeNow writes nothing, so that blocking writes do everything. Each message takes a goroutine while it is written.
func writeNow(raw syscall.RawConn, p []byte) int { return 0 }

// unsentBytes returns 0, because the number is unknown.
func unsentBytes(raw syscall.RawConn) int { return 0 }

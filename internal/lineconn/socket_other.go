//go:build !linux

package lineconn

import "syscall"

// Without these system calls, blocking writes do everything, and only what they accept counts as progress.

func setOptions(syscall.RawConn) (missing string) { return "" }
func writeNow(syscall.RawConn, []byte) int        { return 0 }
func unsentBytes(syscall.RawConn) int             { return 0 }

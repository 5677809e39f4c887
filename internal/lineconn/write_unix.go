//go:build unix && !linux

package lineconn

import "syscall"

// writeNow writes p to a socket that does not block.
func writeNow(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }

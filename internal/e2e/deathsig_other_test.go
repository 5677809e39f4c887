//go:build unix && !linux

package e2e

import "syscall"

// endWithTests returns no attributes: only Linux can end a child process with its parent.
func endWithTests() *syscall.SysProcAttr { return nil }

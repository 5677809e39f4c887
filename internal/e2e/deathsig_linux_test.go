package e2e

import "syscall"

// endWithTests returns the attributes of a child process that the kernel kills when the test process ends.
func endWithTests() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

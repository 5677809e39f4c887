// Package e2e has the end-to-end tests. They run the built server as a process, on real disks, and play with real
// sockets and the real nc (OpenBSD's and nmap's). The messages and their order are tested in main_test.go. Here is what
// only processes, sockets, disks and netcats can show. The tests need Linux, where the kernel ends the processes with
// the tests and counts what they read.
package e2e

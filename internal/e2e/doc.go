// Package e2e has the end-to-end tests: they run the built server as a process of its own, on real disks, and
// play with real sockets and the real nc, OpenBSD's and that of nmap (ncat). What is told to whom, and when, is
// tested in main_test.go; here it is what only processes, sockets, disks and netcats can show.
package e2e

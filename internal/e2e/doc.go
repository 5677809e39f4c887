// Package e2e has the end-to-end tests: they run the built server as a process of
// its own and play with the real nc, OpenBSD's and that of nmap (ncat).
package e2e

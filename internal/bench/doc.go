// Package bench holds benchmarks that measure this server and others over real sockets, on Linux only. README.md in
// this directory says what they measure and shows the figures.
package bench

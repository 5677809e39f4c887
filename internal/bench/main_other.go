//go:build !linux

// Command bench measures the server; it needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: needs Linux: it drives its terminals with epoll and reads the servers' memory from /proc")
	os.Exit(1)
}

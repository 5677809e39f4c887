package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
)

// floor is a server that does nothing but the sockets' work: what it costs, any server
// costs that is written in Go with a goroutine blocked in a read for each
// connection.
type floor struct {
	chain []byte // as long as a broadcast

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// runFloor serves until its input ends. Each line of that is an order to write to
// all connections: an announcement or a chain, which is as long as args[0] says.
func runFloor(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	f := &floor{chain: bytes.Repeat([]byte("x"), size)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", ln.Addr())
	go f.accept(ln)
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		switch orders.Text() {
		case "announcement":
			f.write([]byte(announcement))
		case "chain":
			f.write(f.chain)
		}
	}
	return nil
}

// accept takes connections from ln for ever.
func (f *floor) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		f.mu.Lock()
		f.conns = append(f.conns, conn)
		f.mu.Unlock()
		go answer(conn)
	}
}

// answer says to each line what is as long as the contract's answer, so that joining
// and proposing are as much traffic as they are on the real server.
func answer(conn net.Conn) {
	var line [64]byte
	conn.Write([]byte(greeting))
	text := []byte(stakeAnswer)
	for {
		if _, err := conn.Read(line[:]); err != nil {
			return // the connection stays until the process ends
		}
		conn.Write(text)
		text = []byte(proposalAnswer)
	}
}

// write sends p to all connections in the plainest way: a loop of writes on
// each processor, over its share of them.
func (f *floor) write(p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all sync.WaitGroup
	procs := runtime.GOMAXPROCS(0)
	for i := range procs {
		all.Go(func() {
			for _, conn := range f.conns[i*len(f.conns)/procs : (i+1)*len(f.conns)/procs] {
				conn.Write(p)
			}
		})
	}
	all.Wait()
}

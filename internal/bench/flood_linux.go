package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// floodReport is what the flooding process reports at its end.
type floodReport struct {
	Written int64 // bytes that its terminals could write
	Read    int64 // bytes that they got
	Closed  int   // terminals that the server had closed by then
}

// runFlood connects args[1] terminals to args[0], stakes for each and says
// "ready". From the next line of input to the end of it, each of them sends
// proposals as fast as the server takes them, and reads what it is told.
func runFlood(args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var conns []net.Conn
	for range count {
		conn, err := stake(args[0])
		if err != nil {
			return err
		}
		conns = append(conns, conn)
	}
	fmt.Println("ready")
	orders := bufio.NewScanner(os.Stdin)
	orders.Scan()

	var result floodReport
	var written, read, closed atomic.Int64
	var over atomic.Bool
	var all sync.WaitGroup
	lines := bytes.Repeat([]byte(proposalLine), 10000)
	for _, conn := range conns {
		all.Go(func() {
			for !over.Load() {
				n, err := conn.Write(lines)
				written.Add(int64(n))
				if err != nil && !over.Load() {
					closed.Add(1)
					return
				}
			}
		})
		all.Go(func() {
			n, _ := io.Copy(io.Discard, conn)
			read.Add(n)
		})
	}
	for orders.Scan() {
		continue // until the end of input
	}
	over.Store(true)
	for _, conn := range conns {
		conn.SetDeadline(time.Now()) // a write may be blocked
	}
	all.Wait()
	result.Written, result.Read, result.Closed = written.Load(), read.Load(), int(closed.Load())
	return json.NewEncoder(os.Stdout).Encode(result)
}

// stake connects a terminal, stakes and returns it at its next prompt.
func stake(addr string) (net.Conn, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, stakeLine); err != nil {
		conn.Close()
		return nil, err
	}
	var got strings.Builder
	for buf := make([]byte, 1024); !strings.HasSuffix(got.String(), bpmPrompt); {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("a terminal cannot stake, it got %q: %w", got.String(), err)
		}
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

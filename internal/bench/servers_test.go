//go:build linux

package bench

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// What a client types and gets. TestSides compares the lengths with those of the real server.
const (
	stakeLine    = "100\n"
	proposalLine = "72\n"
	announceLine = "announce\n" // makes the baseline announce

	stakePrompt = "Enter token balance:"
	bpmPrompt   = "\nEnter a new BPM:"
	winner      = "\nwinning validator: "

	anyHash     = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed"
	sealLine    = "draw 1 seal: " + anyHash + "\n"
	stakeAnswer = "\nyou are validator " + anyHash + " with 100 tokens staked\n" + sealLine +
		"type your pulse to propose block 1; the winner is drawn in less than 1s\n" + bpmPrompt
	announcement = winner + anyHash + "\nblock 1, BPM 72: ticket 57 of 100\n" +
		"draw 1 secret: KBZ3ZK5EUBYQZ2WUTMH3RYMSGE\n" + sealLine + bpmPrompt
)

// serve accepts connections on ADDR and runs handleConn in a goroutine for each. It returns only an error.
func serve(handleConn func(net.Conn)) error {
	ln, err := net.Listen("tcp", os.Getenv("ADDR"))
	for err == nil {
		var conn net.Conn
		if conn, err = ln.Accept(); err == nil {
			go handleConn(conn)
		}
	}
	return err
}

// runBaseline runs a server that does only the work of the sockets. One goroutine per connection waits in a read. It
// answers a stake, and it writes announcements.
func runBaseline() error {
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	return serve(func(conn net.Conn) {
		mu.Lock()
		conns = append(conns, conn)
		mu.Unlock()
		io.WriteString(conn, stakePrompt)
		var line [64]byte
		for {
			n, err := conn.Read(line[:])
			if err != nil {
				return // the process closes conn when it exits
			}
			switch string(line[:n]) {
			case stakeLine:
				io.WriteString(conn, stakeAnswer)
			case announceLine:
				mu.Lock()
				writeAll(conns, []byte(announcement))
				mu.Unlock()
			}
		}
	})
}

// writeAll writes p to all connections in the plainest way. Each processor loops over its share of them.
func writeAll(conns []net.Conn, p []byte) {
	var writers sync.WaitGroup
	procs := runtime.GOMAXPROCS(0)
	for i := range procs {
		writers.Go(func() {
			for _, conn := range conns[i*len(conns)/procs : (i+1)*len(conns)/procs] {
				conn.Write(p)
			}
		})
	}
	writers.Wait()
}

// runTutorial runs a server built the tutorial's way. It starts two more goroutines for each connection, sends
// announcements over one unbuffered channel that all of them read, and prints the validators whenever one joins. It
// differs from the original in three ways. A mutex guards what is shared, because the original dies of "concurrent map
// writes" when two clients join at the same moment. The first proposal wins, because BenchmarkDraw measures the draw.
// There are no broadcasts.
func runTutorial() error {
	announcements := make(chan string)
	var mu sync.Mutex // guards candidates and validators
	var candidates []string
	validators := map[string]int{}
	go func() {
		for range time.Tick(100 * time.Millisecond) {
			mu.Lock()
			proposed, receivers := candidates, len(validators)
			candidates = nil
			mu.Unlock()
			for i := 0; i < receivers && len(proposed) > 0; i++ {
				announcements <- winner + proposed[0] + "\n"
			}
		}
	}()
	return serve(func(conn net.Conn) {
		io.WriteString(conn, stakePrompt)
		balance := bufio.NewScanner(conn)
		balance.Scan()
		go func() {
			for msg := range announcements {
				io.WriteString(conn, msg)
			}
		}()
		mu.Lock()
		address := fmt.Sprintf("%x", sha256.Sum256([]byte(strconv.Itoa(len(validators)))))
		validators[address], _ = strconv.Atoi(balance.Text())
		fmt.Println(validators)
		mu.Unlock()
		io.WriteString(conn, bpmPrompt)
		go func() {
			for scanBPM := bufio.NewScanner(conn); scanBPM.Scan(); {
				sha256.Sum256([]byte(time.Now().String() + scanBPM.Text() + address)) // hashes the candidate block
				mu.Lock()
				candidates = append(candidates, address)
				mu.Unlock()
				io.WriteString(conn, bpmPrompt)
			}
		}()
		select {} // where the original sleeps until the next broadcast
	})
}

//go:build linux

package bench

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What a terminal types and is told, after the contract. The floor has to write as much as the
// server does; TestSides sees that it does.
const (
	stakeLine    = "100\n"
	proposalLine = "72\n"
	prompt       = "\nEnter a new BPM:"
	accepted     = "; the winner is drawn in "
	winner       = "\nwinning validator: "

	anyHash        = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed"
	stakeAnswer    = "\nyou are validator " + anyHash + " with 100 tokens staked\ndraw 1 seal: " + anyHash + "\n" + prompt
	proposalAnswer = "\nblock 10 proposed with BPM 72: tickets 1001 to 1100" + accepted + "400ms\n" + prompt
	announcement   = winner + anyHash + "\nblock 10, BPM 72: ticket 57 of 100, secret KBZ3ZK5EUBYQZ2WUTMH3RYMSGE\n" +
		"draw 11 seal: " + anyHash + "\n" + prompt

	// Typed to the floor, these have it write to all terminals.
	orderAnnouncement = "announce\n"
	orderBroadcast    = "broadcast\n"

	flooders = 8 // how many terminals flood
)

// serve has a handler talk with each terminal that connects to ADDR.
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

// runFloor is a server that does nothing but the sockets' work: what it costs, any server costs that
// is written in Go with a goroutine blocked in a read for each connection. It answers each line with
// as much as the contract says: joining and proposing are as much traffic as on the real server.
func runFloor() error {
	chain, _ := json.Marshal(newChain())
	broadcast := []byte("\n" + string(chain) + "\n" + prompt)
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	// writeAll writes in the plainest way: a loop on each processor, over its share of them.
	writeAll := func(p []byte) {
		mu.Lock()
		defer mu.Unlock()
		var all sync.WaitGroup
		procs := runtime.GOMAXPROCS(0)
		for i := range procs {
			all.Go(func() {
				for _, conn := range conns[i*len(conns)/procs : (i+1)*len(conns)/procs] {
					conn.Write(p)
				}
			})
		}
		all.Wait()
	}
	return serve(func(conn net.Conn) {
		mu.Lock()
		conns = append(conns, conn)
		mu.Unlock()
		io.WriteString(conn, "Enter token balance:")
		var line [64]byte
		for {
			n, err := conn.Read(line[:])
			if err != nil {
				return // the connection stays until the process ends
			}
			switch string(line[:n]) {
			case stakeLine:
				io.WriteString(conn, stakeAnswer)
			case proposalLine:
				io.WriteString(conn, proposalAnswer)
			case orderAnnouncement:
				writeAll([]byte(announcement))
			case orderBroadcast:
				writeAll(broadcast)
			}
		}
	})
}

// Block is one entry of the chain.
type Block struct {
	Index                     int
	Timestamp                 string
	BPM                       int
	Hash, PrevHash, Validator string
}

// newBlock makes the block that follows old, hashed as the contract says.
func newBlock(old Block, bpm int, validator string) Block {
	b := Block{old.Index + 1, time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), bpm, "", old.Hash, validator}
	text := fmt.Sprintf("%d\n%s\n%d\n%s\n%s\n", b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator)
	b.Hash = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	return b
}

// newChain makes a chain of as many blocks as the environment says, of none if it says nothing.
func newChain() []Block {
	length, _ := strconv.Atoi(os.Getenv("BLOCKS"))
	chain := []Block{} // not nil, which would be encoded as null
	for block := newBlock(Block{Index: -1}, 0, ""); len(chain) < length; block = newBlock(block, 72, anyHash) {
		chain = append(chain, block)
	}
	return chain
}

// runTutorial is a server built the tutorial's way: further goroutines for each connection,
// announcements over one unbuffered channel that all handlers read, the list of validators
// printed whenever one joins, the chain encoded for each terminal. It differs in two things. All
// that is shared is guarded by the mutex; the original dies of "concurrent map writes" when two
// terminals join at the same moment. And the first to propose wins: the draw is measured elsewhere.
func runTutorial() error {
	round, err1 := time.ParseDuration(os.Getenv("ROUND"))
	broadcast, err2 := time.ParseDuration(os.Getenv("BROADCAST"))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	announcements := make(chan string)
	var mu sync.Mutex // guards what follows
	chain := newChain()
	var candidates []Block
	validators := map[string]int{}
	go func() {
		for range time.Tick(round) {
			mu.Lock()
			proposed, listeners := candidates, len(validators)
			candidates = nil
			mu.Unlock()
			for i := 0; i < listeners && len(proposed) > 0; i++ { // whichever handlers are free take them
				announcements <- winner + proposed[0].Validator + "\n"
			}
		}
	}()
	return serve(func(conn net.Conn) {
		io.WriteString(conn, "Enter token balance:")
		balance := bufio.NewScanner(conn)
		balance.Scan()
		go func() {
			for msg := range announcements {
				io.WriteString(conn, msg)
			}
		}()
		mu.Lock()
		address := newBlock(Block{}, len(validators), "").Hash
		validators[address], _ = strconv.Atoi(balance.Text())
		fmt.Println(validators)
		mu.Unlock()
		io.WriteString(conn, prompt)
		go func() {
			for scanBPM := bufio.NewScanner(conn); scanBPM.Scan(); {
				bpm, _ := strconv.Atoi(scanBPM.Text())
				candidate := newBlock(Block{}, bpm, address)
				mu.Lock()
				candidates = append(candidates, candidate)
				mu.Unlock()
				io.WriteString(conn, prompt)
			}
		}()
		for {
			time.Sleep(broadcast)
			mu.Lock()
			output, _ := json.Marshal(chain)
			mu.Unlock()
			io.WriteString(conn, string(output)+"\n")
		}
	})
}

// runFlood has some terminals join the server at ADDR. They send proposals as fast as it takes
// them and read what they are told, until the process is killed or the server closes one.
func runFlood() error {
	lines := []byte(strings.Repeat(proposalLine, 10000))
	failed := make(chan error)
	for range flooders {
		conn, err := net.Dial("tcp", os.Getenv("ADDR"))
		if err != nil {
			return err
		}
		go io.Copy(io.Discard, conn)
		go func() {
			_, err := io.WriteString(conn, stakeLine)
			for err == nil {
				_, err = conn.Write(lines)
			}
			failed <- err
		}()
	}
	return <-failed
}

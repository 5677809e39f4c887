//go:build linux

package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
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

// floor is a server that does nothing but the sockets' work: what it costs, any server costs
// that is written in Go with a goroutine blocked in a read for each connection.
type floor struct {
	broadcast []byte // as long as the server's

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// runFloor serves until it is killed. Its broadcasts are those of the CHAIN_FILE.
func runFloor() error {
	chain, err := readChain()
	if err != nil {
		return err
	}
	f := &floor{broadcast: []byte("\n" + string(chain) + "\n" + prompt)}
	return serve(f.handleConn)
}

// handleConn answers each line with as much as the contract says, so that joining and proposing
// are as much traffic as they are on the real server.
func (f *floor) handleConn(conn net.Conn) {
	f.mu.Lock()
	f.conns = append(f.conns, conn)
	f.mu.Unlock()
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
			f.write([]byte(announcement))
		case orderBroadcast:
			f.write(f.broadcast)
		}
	}
}

// write sends p to all connections in the plainest way: a loop of writes on each processor,
// over its share of them.
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

// Block is one entry of the chain.
type Block struct {
	Index     int
	Timestamp string
	BPM       int
	Hash      string
	PrevHash  string
	Validator string
}

// newBlock makes the block that follows old, hashed as the contract says.
func newBlock(old Block, bpm int, validator string) Block {
	b := Block{old.Index + 1, time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"), bpm, "", old.Hash, validator}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%d\n%s\n%s\n", b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator))
	b.Hash = hex.EncodeToString(sum[:])
	return b
}

// writeChain writes a chain of length blocks into a new chain file.
func writeChain(file string, length int) error {
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	block := newBlock(Block{Index: -1}, 0, "")
	for range length {
		out.Encode(block)
		block = newBlock(block, 72, anyHash)
	}
	return os.WriteFile(file, lines.Bytes(), 0o600)
}

// readChain returns the blocks of the CHAIN_FILE as one array; without a file, an empty one.
func readChain() ([]byte, error) {
	lines, err := os.ReadFile(os.Getenv("CHAIN_FILE"))
	if os.Getenv("CHAIN_FILE") == "" {
		err = nil
	}
	return []byte("[" + strings.ReplaceAll(strings.TrimSpace(string(lines)), "\n", ",") + "]"), err
}

// tutorial is a server built the tutorial's way: further goroutines for each connection,
// announcements over one unbuffered channel that all handlers read, the list of
// validators printed whenever one joins, the chain encoded for each terminal. It differs in two
// things. All that is shared is guarded by the mutex; the original dies of "concurrent map
// writes" when two terminals join at the same moment. And the first to propose wins: the
// draw is measured elsewhere.
type tutorial struct {
	announcements chan string
	broadcast     time.Duration

	mu         sync.Mutex // guards what follows
	chain      []Block
	tempBlocks []Block
	validators map[string]int
}

// runTutorial serves until it is killed.
func runTutorial() error {
	round, err1 := time.ParseDuration(os.Getenv("ROUND"))
	broadcast, err2 := time.ParseDuration(os.Getenv("BROADCAST"))
	chain, err3 := readChain()
	t := &tutorial{broadcast: broadcast, announcements: make(chan string), validators: map[string]int{}}
	if err := errors.Join(err1, err2, err3, json.Unmarshal(chain, &t.chain)); err != nil {
		return err
	}
	go func() {
		for range time.Tick(round) {
			t.pickWinner()
		}
	}()
	return serve(t.handleConn)
}

// pickWinner ends a round.
func (t *tutorial) pickWinner() {
	t.mu.Lock()
	temp, validators := t.tempBlocks, len(t.validators)
	t.tempBlocks = nil
	t.mu.Unlock()
	if len(temp) > 0 {
		for range validators { // whichever handlers are free take them
			t.announcements <- winner + temp[0].Validator + "\n"
		}
	}
}

// handleConn talks with one terminal.
func (t *tutorial) handleConn(conn net.Conn) {
	io.WriteString(conn, "Enter token balance:")
	scanBalance := bufio.NewScanner(conn)
	if !scanBalance.Scan() {
		return
	}
	go func() {
		for msg := range t.announcements {
			io.WriteString(conn, msg)
		}
	}()
	t.mu.Lock()
	address := newBlock(Block{}, len(t.validators), "").Hash
	t.validators[address], _ = strconv.Atoi(scanBalance.Text())
	fmt.Println(t.validators)
	t.mu.Unlock()
	io.WriteString(conn, prompt)
	go func() {
		for scanBPM := bufio.NewScanner(conn); scanBPM.Scan(); {
			bpm, _ := strconv.Atoi(scanBPM.Text())
			candidate := newBlock(Block{}, bpm, address)
			t.mu.Lock()
			t.tempBlocks = append(t.tempBlocks, candidate)
			t.mu.Unlock()
			io.WriteString(conn, prompt)
		}
	}()
	for {
		time.Sleep(t.broadcast)
		t.mu.Lock()
		output, _ := json.Marshal(t.chain)
		t.mu.Unlock()
		io.WriteString(conn, string(output)+"\n")
	}
}

// flooders is how many terminals flood.
const flooders = 8

// runFlood has some terminals join the server at ADDR. They send proposals as fast as it takes
// them and read what they are told, until the process is killed.
func runFlood() error {
	failed := make(chan error)
	lines := bytes.Repeat([]byte(proposalLine), 10000)
	for range flooders {
		conn, err := net.Dial("tcp", os.Getenv("ADDR"))
		if err != nil {
			return err
		}
		io.WriteString(conn, stakeLine)
		if _, err := bufio.NewReader(conn).ReadString('B'); err != nil { // of the prompt
			return fmt.Errorf("staking: %w", err)
		}
		go io.Copy(io.Discard, conn)
		go func() {
			for err := error(nil); err == nil; _, err = conn.Write(lines) {
			}
			failed <- errors.New("the server closed a terminal")
		}()
	}
	return <-failed
}

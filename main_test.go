package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"proofofstake/internal/linefile"
)

// The tests are in the order of main.go: blocks, the chain file, the terminal contract
// in virtual time, the lottery, what the tutorial's program dies of, settings.
// End-to-end tests with the built binary and the real nc are in internal/e2e.

// ---- Helpers ----

// hall is a network under test, with its console.
type hall struct {
	*network
	t       testing.TB
	console *syncBuffer
	stderr  *syncBuffer
	stop    context.CancelFunc
}

// syncBuffer is a bytes.Buffer that may be read while it is written to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testSettings are the defaults, but for the chain file: in memory only.
func testSettings() settings {
	s, err := loadSettings(func(name string) (string, bool) { return "", name == "CHAIN_FILE" })
	if err != nil {
		panic(err)
	}
	return s
}

// open starts a network, without a listener: see connect. It ends with the test.
func open(t testing.TB, s settings) *hall {
	t.Helper()
	h := &hall{t: t, console: new(syncBuffer), stderr: new(syncBuffer)}
	n, err := newNetwork(s, h.console, log.New(h.stderr, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	h.network = n
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go n.run(ctx)
	return h
}

// shut ends the lottery.
func (h *hall) shut() {
	h.stop()
	<-h.stopped
}

// duplex is one end of a connection of two net.Pipes, one for each direction, so that one
// direction can be ended alone, as in TCP.
type duplex struct {
	in, out net.Conn
}

func (d duplex) Read(p []byte) (int, error)  { return d.in.Read(p) }
func (d duplex) Write(p []byte) (int, error) { return d.out.Write(p) }
func (d duplex) CloseWrite() error           { return d.out.Close() }
func (d duplex) Close() error                { return errors.Join(d.in.Close(), d.out.Close()) }
func (d duplex) LocalAddr() net.Addr         { return d.in.LocalAddr() }
func (d duplex) RemoteAddr() net.Addr        { return d.in.RemoteAddr() }
func (d duplex) SetDeadline(t time.Time) error {
	return errors.Join(d.in.SetDeadline(t), d.out.SetDeadline(t))
}
func (d duplex) SetReadDeadline(t time.Time) error  { return d.in.SetReadDeadline(t) }
func (d duplex) SetWriteDeadline(t time.Time) error { return d.out.SetWriteDeadline(t) }

// person sits at a terminal of a hall in virtual time.
type person struct {
	t      testing.TB
	conn   duplex
	input  chan string // typed, not yet sent
	screen syncBuffer
	read   int           // how much of screen has been taken
	left   chan struct{} // closed when the server has ended the conversation
	served chan struct{} // closed when the handler has returned
}

// connect gives h one more terminal.
func (h *hall) connect() *person {
	toServer, atServer := net.Pipe()
	atClient, toClient := net.Pipe()
	p := &person{t: h.t, conn: duplex{in: atClient, out: toServer}, input: make(chan string, 10000), left: make(chan struct{}), served: make(chan struct{})}
	go func() {
		h.handleConn(duplex{in: atServer, out: toClient})
		close(p.served)
	}()
	go func() {
		io.Copy(&p.screen, p.conn)
		close(p.left)
	}()
	go func() {
		for {
			select {
			case text := <-p.input:
				io.WriteString(p.conn, text)
			case <-p.left:
				return
			}
		}
	}()
	return p
}

// types sends text and returns what the terminal shows for it, before any time passes.
func (p *person) types(text string) string {
	p.input <- text
	return p.sees()
}

// sees returns what the terminal shows that was not seen before.
func (p *person) sees() string {
	synctest.Wait()
	text := p.screen.String()
	new := text[p.read:]
	p.read = len(text)
	return new
}

// expect fails the test if the new text on the terminal is not want.
func (p *person) expect(got, want string) {
	p.t.Helper()
	if got != want {
		p.t.Errorf("the terminal shows\n%q\nwant\n%q", got, want)
	}
}

// expectLeft fails the test if the conversation goes on, or has left something behind.
func (p *person) expectLeft() {
	p.t.Helper()
	time.Sleep(2 * time.Second) // the last words have a second to arrive
	synctest.Wait()
	select {
	case <-p.served:
	default:
		p.t.Error("the connection is still open")
	}
}

// joins stakes tokens and returns the validator's address.
func (p *person) joins(tokens int64) string {
	p.t.Helper()
	text := p.types(fmt.Sprintf("%d\n", tokens))
	m := regexp.MustCompile(`you are validator ([0-9a-f]{64}) with`).FindStringSubmatch(text)
	if m == nil {
		p.t.Fatalf("staking %d: %q", tokens, text)
	}
	return m[1]
}

// leaves closes the terminal, as one whose window is closed.
func (p *person) leaves() { p.conn.Close() }

// validatorCount asks the network how many there are.
func (h *hall) validatorCount() (n int) {
	h.do(func() { n = len(h.validators) })
	return n
}

// blocks returns the whole chain, as a broadcast shows it, verified.
func (h *hall) blocks() []Block {
	h.t.Helper()
	var text []byte
	h.do(func() { text = bytes.Clone(h.chain.Newest()) })
	return parseChain(h.t, string(text)+"]")
}

// parseChain reads and verifies a chain from its JSON.
func parseChain(t testing.TB, text string) []Block {
	t.Helper()
	var blocks []Block
	if err := json.Unmarshal([]byte(text), &blocks); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	for i, b := range blocks {
		if i == 0 && b.Index != 0 {
			continue // the chain's start is not shown
		}
		before := beforeGenesis()
		if i > 0 {
			before = blocks[i-1]
		}
		if err := blockFault(b, before); err != nil {
			t.Fatal(err)
		}
	}
	return blocks
}

// inVirtualTime runs test on a fresh network in a bubble of virtual time, in which
// every goroutine must end with the test.
func inVirtualTime(t *testing.T, s settings, test func(t *testing.T, h *hall)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := open(t, s)
		test(t, h)
		h.stop()
		<-h.stopped
		time.Sleep(time.Minute) // all terminals have been told, or were cut off
		synctest.Wait()
		h.close()
	})
}

// ---- Blocks ----

// testChain returns n valid blocks.
func testChain(n int) []Block {
	blocks := make([]Block, n)
	before := beforeGenesis()
	for i := range blocks {
		bpm, validator := 60+i, calculateHash(fmt.Sprint(i))
		if i == 0 {
			bpm, validator = 0, ""
		}
		blocks[i] = generateBlock(before, bpm, validator)
		before = blocks[i]
	}
	return blocks
}

// Changing any field of any block breaks the chain there: the tutorial's hash leaves out the
// validator, turns numbers into runes and gives the genesis block the hash of another.
func TestEveryFieldCounts(t *testing.T) {
	blocks := testChain(4)
	for i, good := range blocks {
		before := beforeGenesis()
		if i > 0 {
			before = blocks[i-1]
		}
		if !isBlockValid(good, before) {
			t.Fatalf("block %d: %v", i, blockFault(good, before))
		}
		for field := range reflect.TypeFor[Block]().NumField() {
			bad := good
			switch v := reflect.ValueOf(&bad).Elem().Field(field); v.Kind() {
			case reflect.Int:
				v.SetInt(v.Int() + 1)
			case reflect.String:
				v.SetString("0" + v.String())
			}
			name := reflect.TypeFor[Block]().Field(field).Name
			if isBlockValid(bad, before) {
				t.Errorf("block %d with another %s is valid", i, name)
			}
			// Even with a hash that fits, the next block no longer does.
			if bad.Hash = calculateBlockHash(bad); name != "Hash" && i+1 < len(blocks) && isBlockValid(blocks[i+1], bad) {
				t.Errorf("block %d still follows block %d with another %s", i+1, i, name)
			}
		}
	}
	for _, bad := range []Block{generateBlock(beforeGenesis(), 1, ""), generateBlock(beforeGenesis(), 0, "somebody")} {
		if isBlockValid(bad, beforeGenesis()) {
			t.Errorf("as genesis block, %+v is valid", bad)
		}
	}
}

// The hash is the one that README.md tells people to compute with printf and sha256sum.
func TestBlockHash(t *testing.T) {
	b := Block{Index: 12, Timestamp: "2026-11-22T14:05:39.283407618Z", BPM: 72, PrevHash: "ab", Validator: "cd"}
	want := calculateHash("12\n2026-11-22T14:05:39.283407618Z\n72\nab\ncd\n")
	if got := calculateBlockHash(b); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if got := calculateHash("abc"); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("SHA-256 of abc: %s", got)
	}
}

// The contract: RFC 3339, UTC, nanoseconds.
func TestTimestamp(t *testing.T) {
	stamp := testChain(1)[0].Timestamp
	if parsed, err := time.Parse(time.RFC3339Nano, stamp); err != nil || parsed.Location() != time.UTC || len(stamp) != 30 {
		t.Errorf("timestamp %s: %v", stamp, err)
	}
}

// A block has one spelling: what encoding/json writes, parseBlock reads, and nothing else.
func TestParseBlock(t *testing.T) {
	for _, b := range testChain(3) {
		line, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseBlock(line); err != nil || got != b {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
		for _, bad := range []string{
			"", "{", "null", "[]", string(line) + " ", " " + string(line), string(line[:len(line)-1]),
			strings.Replace(string(line), ":", ": ", 1),
			strings.Replace(string(line), `"Index"`, `"index"`, 1),
			strings.Replace(string(line), `"Index":`, `"Index":0`, 1),
			strings.Replace(string(line), `"Index":`, `"Index":+`, 1),
			strings.Replace(string(line), `"Hash"`, `"Hash":"","Hash"`, 1),
			strings.Replace(string(line), "T", `\u0054`, 1),
			strings.Replace(string(line), "T", "\x00", 1),
		} {
			if got, err := parseBlock([]byte(bad)); err == nil {
				t.Errorf("%q is taken for %+v", bad, got)
			}
		}
	}
}

// ---- The chain file ----

// encode returns the chain file of blocks.
func encode(t testing.TB, blocks []Block) []byte {
	var file []byte
	for _, b := range blocks {
		line, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		file = append(append(file, line...), '\n')
	}
	return file
}

// restart opens a network on the chain file name, and returns its blocks and warnings.
func restart(t *testing.T, name string) (blocks []Block, warnings string, err error) {
	t.Helper()
	s := testSettings()
	s.chainFile = name
	s.broadcastBlocks = 0
	var stderr bytes.Buffer
	n, err := newNetwork(s, io.Discard, log.New(&stderr, "", 0))
	if err != nil {
		return nil, "", err
	}
	defer n.close()
	return parseChain(t, string(n.chain.Newest())+"]"), stderr.String(), nil
}

// A crash may leave the file cut anywhere in its last line, and nobody has heard of that block: the
// blocks before it are all there after a restart, and the torn one is gone.
func TestChainFileCutAtEveryByte(t *testing.T) {
	blocks := testChain(4)
	file := encode(t, blocks)
	twoLines := len(encode(t, blocks[:2]))
	name := filepath.Join(t.TempDir(), "chain.jsonl")
	for cut := twoLines; cut <= len(file); cut++ {
		if err := os.WriteFile(name, file[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		got, warnings, err := restart(t, name)
		whole := bytes.Count(file[:cut], []byte("\n"))
		if err != nil || !slices.Equal(got, blocks[:whole]) {
			t.Fatalf("cut at %d: %d blocks, want %d; %v", cut, len(got), whole, err)
		}
		torn := file[cut-1] != '\n'
		if torn != strings.Contains(warnings, "never announced") {
			t.Fatalf("cut at %d: warnings %q", cut, warnings)
		}
		if kept, _ := os.ReadFile(name); !bytes.Equal(kept, encode(t, blocks[:whole])) {
			t.Fatalf("cut at %d: the file does not end in a whole line", cut)
		}
	}
}

// Whatever byte of the file is damaged, in whatever way, the server does not start, says which line it
// is, and leaves the file as it is: no wrong block is taken and no announced one dropped.
func TestChainFileEveryByteFlipped(t *testing.T) {
	blocks := testChain(3)
	file := encode(t, blocks)
	name := filepath.Join(t.TempDir(), "chain.jsonl")
	flips := []byte{0x01, 0x20, 0x80}
	for at := range file {
		bad := slices.Clone(file)
		values := []byte{'\n', '}'}
		for _, f := range flips {
			values = append(values, file[at]^f)
		}
		for _, v := range values {
			if bad[at] = v; v == file[at] {
				continue
			}
			if err := os.WriteFile(name, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			_, _, err := restart(t, name)
			line := fmt.Sprintf("line %d: ", bytes.Count(file[:at], []byte("\n"))+1)
			if err == nil || !strings.Contains(err.Error(), line) {
				t.Fatalf("byte %d %q as %q: error %v, want one of %s", at, file[at], v, err, line)
			}
			if kept, _ := os.ReadFile(name); !bytes.Equal(kept, bad) {
				t.Fatalf("byte %d: the damaged file was changed", at)
			}
		}
	}
}

// Blocks of which each is right, but which do not make a chain, are no chain.
func TestChainFileFaults(t *testing.T) {
	blocks := testChain(4)
	other := testChain(4)
	forged := generateBlock(blocks[0], 60, "somebody")
	for fault, file := range map[string][]Block{
		"line 3: wrong index":   {blocks[0], blocks[1], blocks[3]},
		"line 2: wrong index":   {blocks[0], blocks[0]},
		"line 1: wrong index":   {blocks[1]},
		"line 3: wrong link":    {blocks[0], blocks[1], other[2]},
		"line 3: wrong hash":    {blocks[0], blocks[1], {Index: 2, PrevHash: blocks[1].Hash, Hash: forged.Hash}},
		"line 1: wrong genesis": {generateBlock(beforeGenesis(), 1, "")},
	} {
		name := filepath.Join(t.TempDir(), "chain.jsonl")
		os.WriteFile(name, encode(t, file), 0o644)
		_, _, err := restart(t, name)
		if err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("error %v, want %s", err, fault)
		}
		if err := verify(name, io.Discard, nil); err == nil || !strings.Contains(err.Error(), fault) || !strings.Contains(err.Error(), name) {
			t.Errorf("verify: error %v, want %s", err, fault)
		}
	}
}

// Verify counts the blocks of a good file, also of one that is being written.
func TestVerify(t *testing.T) {
	blocks := testChain(3)
	name := filepath.Join(t.TempDir(), "chain.jsonl")
	os.WriteFile(name, append(encode(t, blocks), `{"Index":3,"Ti`...), 0o644)
	var out, warnings bytes.Buffer
	if err := verify(name, &out, &warnings); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("ok: 3 blocks, head %s\n", blocks[2].Hash); out.String() != want {
		t.Errorf("verify says %q, want %q", out.String(), want)
	}
	if !strings.Contains(warnings.String(), "does not count") {
		t.Errorf("no word of the part of a line: %q", warnings.String())
	}
	empty := filepath.Join(t.TempDir(), "empty")
	os.WriteFile(empty, nil, 0o644)
	for _, bad := range []string{filepath.Join(t.TempDir(), "none"), empty, ""} {
		if err := verify(bad, &out, nil); err == nil {
			t.Errorf("%q is ok", bad)
		}
	}
}

// writeChain writes a valid chain file of so many blocks, one after the other.
func writeChain(t testing.TB, name string, blocks int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	e := json.NewEncoder(w) // writes a newline behind each
	block := generateBlock(beforeGenesis(), 0, "")
	for i := range blocks {
		if err := e.Encode(block); err != nil {
			t.Fatal(err)
		}
		block = generateBlock(block, i%200, block.Hash)
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A restored server holds what broadcasts need, however long the chain is.
func TestRestoredMemoryIsFlat(t *testing.T) {
	held := func(blocks int) int64 {
		s := testSettings()
		s.chainFile = filepath.Join(t.TempDir(), "chain.jsonl")
		writeChain(t, s.chainFile, blocks)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		n, err := newNetwork(s, io.Discard, log.Default())
		if err != nil {
			t.Fatal(err)
		}
		defer n.close()
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc) - int64(before.HeapAlloc)
	}
	if short, long := held(2_000), held(30_000); long > short+1<<20 {
		t.Errorf("2,000 blocks take %d bytes, 30,000 blocks %d", short, long)
	}
}

// FuzzReplay: no file makes the reader of chains panic, and what it takes is a chain whose
// lines are those of the file.
func FuzzReplay(f *testing.F) {
	file := encode(f, testChain(3))
	f.Add(file)
	f.Add(file[:len(file)-1])
	f.Add(append(bytes.Clone(file[:len(file)-1]), 'x'))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var lines []byte
		before := beforeGenesis()
		read := func(fn func([]byte) error) ([]byte, error) { return linefile.Read(bytes.NewReader(data), fn) }
		_, tail, err := readChain(read, func(b Block, line []byte) {
			if fault := blockFault(b, before); fault != nil {
				t.Fatal(fault)
			}
			before = b
			if again, _ := json.Marshal(b); !bytes.Equal(again, line) {
				t.Fatalf("%q was read as %q", line, again)
			}
			lines = append(append(lines, line...), '\n')
		})
		if err == nil && !bytes.Equal(append(lines, tail...), data) {
			t.Fatal("something in the file was passed over")
		}
		if !bytes.HasPrefix(data, lines) && !bytes.HasPrefix(data, lines[:len(lines)-1]) {
			t.Fatal("something was read that is not in the file")
		}
	})
}

// A server goes on where the last one was, in every way that it shows.
func TestRestartGoesOn(t *testing.T) {
	s := testSettings()
	s.chainFile = filepath.Join(t.TempDir(), "chain.jsonl")
	var before []Block
	for round := 1; round <= 3; round++ {
		inVirtualTime(t, s, func(t *testing.T, h *hall) {
			console := h.console.String()
			if round == 1 == strings.Contains(console, "restored") || !strings.Contains(console, "Index: (int) 0,") {
				t.Errorf("start %d: console shows %q", round, console)
			}
			if round > 1 && !strings.Contains(console, fmt.Sprintf("restored %d blocks from %s, head %s\n", round, s.chainFile, before[round-1].Hash)) {
				t.Errorf("start %d: console shows %q", round, console)
			}
			p := h.connect()
			p.joins(5)
			if text := p.types("70\n"); !strings.Contains(text, fmt.Sprintf("\nblock %d proposed", round)) {
				t.Errorf("start %d: %q", round, text)
			}
			time.Sleep(s.roundLength)
			p.sees()
			blocks := h.blocks()
			if len(blocks) != round+1 || !slices.Equal(blocks[:round], before) && round > 1 {
				t.Errorf("start %d: the chain is not continued: %d blocks", round, len(blocks))
			}
			before = blocks
		})
	}
}

// Two servers never share a file.
func TestChainFileInUse(t *testing.T) {
	s := testSettings()
	s.chainFile = filepath.Join(t.TempDir(), "chain.jsonl")
	n, err := newNetwork(s, io.Discard, log.Default())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newNetwork(s, io.Discard, log.Default()); !errors.Is(err, linefile.ErrInUse) {
		t.Errorf("a second server: %v", err)
	}
	n.close()
	if n, err = newNetwork(s, io.Discard, log.Default()); err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	n.close()
}

// A round whose block cannot be kept is not announced; its proposals stay for the next draw, together
// with new ones, and the console says so once.
func TestRoundIsNotAnnouncedBeforeItIsKept(t *testing.T) {
	s := testSettings()
	s.chainFile = filepath.Join(t.TempDir(), "chain.jsonl")
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		p, q := h.connect(), h.connect()
		p.joins(5)
		q.joins(5)
		p.types("70\n")
		q.sees()
		h.do(func() { h.file.Close() }) // from now on every write fails
		time.Sleep(3*s.roundLength + time.Second)
		for _, person := range []*person{p, q} {
			if text := person.sees(); strings.Contains(text, "winning") || strings.Contains(text, "forged") {
				t.Errorf("announced, though not kept: %q", text)
			}
		}
		if text := p.types("71\n"); !strings.Contains(text, "block 1 is already proposed with BPM 70") {
			t.Errorf("the proposal does not stay: %q", text)
		}
		if text := q.types("71\n"); !strings.Contains(text, "block 1 proposed with BPM 71") {
			t.Errorf("the round takes no other proposal: %q", text)
		}
		if n := strings.Count(h.stderr.String(), "block 1 is not forged: cannot keep it"); n != 1 {
			t.Errorf("said %d times: %s", n, h.stderr)
		}
		if got := len(h.blocks()); got != 1 {
			t.Errorf("%d blocks in the chain", got)
		}
		h.do(func() { // there is room again
			file, err := linefile.Open(s.chainFile)
			if err == nil {
				_, err = file.Replay(func([]byte) error { return nil })
			}
			if err != nil {
				t.Error(err)
			}
			h.file = file
		})
		time.Sleep(s.roundLength)
		if text := p.sees() + q.sees(); strings.Count(text, "winning validator") != 2 || strings.Count(text, "you forged block 1\n") != 1 {
			t.Errorf("after the disk has room again: %q", text)
		}
		if !strings.Contains(h.console.String(), "from 2 proposals") || !strings.Contains(h.stderr.String(), "can be kept again") {
			t.Errorf("console: %s %s", h.console, h.stderr)
		}
	})
}

// ---- The terminal contract, row by row ----

func TestStakeAndPropose(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		p.expect(p.sees(), "Enter token balance:")
		text := p.types("100\n")
		address := regexp.MustCompile("[0-9a-f]{64}").FindString(text)
		p.expect(text, "\nyou are validator "+address+" with 100 tokens staked\n\nEnter a new BPM:")
		p.expect(p.types("72\n"), "\nblock 1 proposed with BPM 72; the winner is drawn in 30s\n\nEnter a new BPM:")
		time.Sleep(18 * time.Second)
		p.expect(p.types("73\n"), "\nblock 1 is already proposed with BPM 72; the next round opens in 12s\n\nEnter a new BPM:")
		time.Sleep(11200 * time.Millisecond)
		p.expect(p.types("74\n"), "\nblock 1 is already proposed with BPM 72; the next round opens in 800ms\n\nEnter a new BPM:")
		time.Sleep(800 * time.Millisecond)
		p.expect(p.sees(), "\nwinning validator: "+address+"\nyou forged block 1\n\nEnter a new BPM:")
		p.expect(p.types("75\n"), "\nblock 2 proposed with BPM 75; the winner is drawn in 30s\n\nEnter a new BPM:")
		blocks := h.blocks()
		if len(blocks) != 2 || blocks[1].BPM != 72 || blocks[1].Validator != address {
			t.Errorf("the chain is %+v", blocks)
		}
	})
}

func TestStakes(t *testing.T) {
	const whole, least, most = "it must be a whole number, such as 100", "the least is 1", "the most is 9223372036854775807"
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		for typed, why := range map[string]string{
			"0": least, "-1": least, "-99999999999999999999": least, "9223372036854775808": most,
			"abc": whole, "1.5": whole, "1e3": whole, "1 000": whole, "0x10": whole, "١": whole,
			"GET / HTTP/1.1": whole, "\x00": whole, "\xff\xfb\x01": whole, "a\tb": whole,
			strings.Repeat("ä", 50): whole, strings.Repeat("9", 1024): most, strings.Repeat("9", 1025): "the line is too long",
		} {
			p := h.connect()
			p.sees()
			shown := typed
			if r := []rune(typed); len(r) > 40 {
				shown = string(r[:40])
			}
			p.expect(p.types(typed+"\n"), fmt.Sprintf("\n%q is not a stake: %s\nEnter token balance:", shown, why))
			p.joins(5) // nothing is lost
			p.leaves()
		}
		for typed, tokens := range map[string]int64{
			"1": 1, "9223372036854775807": math.MaxInt64, "  12\t": 12, "7\r": 7, "007": 7,
			strings.Repeat(" ", 1023) + "5": 5, strings.Repeat("0", 1023) + "6\r": 6,
		} {
			p := h.connect()
			p.sees()
			if text := p.types(typed + "\n"); !strings.Contains(text, fmt.Sprintf(" with %d tokens staked\n", tokens)) {
				t.Errorf("staking %q: %q", typed, text)
			}
			p.leaves()
		}
	})
}

func TestThreeBadStakes(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		p.types("no\n")
		p.types("\n")
		p.types("no\n")
		p.expect(p.types("no\n"), "\n\"no\" is not a stake: it must be a whole number, such as 100\nEnter token balance:\ntoo many tries, goodbye\n")
		p.expectLeft()
		if n := h.validatorCount(); n != 0 {
			t.Errorf("%d validators", n)
		}
	})
}

func TestEmptyLines(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		p.sees()
		for _, empty := range []string{"\n", "\r\n", "  \t\n"} {
			p.expect(p.types(empty), "Enter token balance:")
		}
		p.joins(3)
		for _, empty := range []string{"\n", "\r\n", "  \t\n"} {
			p.expect(p.types(empty), "\nEnter a new BPM:")
		}
	})
}

// What is no pulse costs the stake, the place on the list and the proposal.
func TestSlashing(t *testing.T) {
	for _, typed := range []string{
		"abc", "-1", "72.5", "7 2", "99999999999999999999", "\x00", "\x1b[2J", strings.Repeat("x", 41), strings.Repeat("7", 1025),
	} {
		inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
			p, other := h.connect(), h.connect()
			p.joins(math.MaxInt64)
			address := other.joins(1)
			p.types("70\n")
			other.types("71\n")
			p.expect(p.types(typed+"\n"), fmt.Sprintf("\nslashed: %q is not a pulse; 9223372036854775807 tokens forfeited\n", typed[:min(len(typed), 40)]))
			p.expectLeft()
			if n := h.validatorCount(); n != 1 {
				t.Errorf("%d validators left", n)
			}
			time.Sleep(h.roundLength)
			// Against 1 token, the forfeited ones would have won.
			other.expect(other.sees(), "\nwinning validator: "+address+"\nyou forged block 1\n\nEnter a new BPM:")
			if console := h.console.String(); !strings.Contains(console, "ticket 1 of 1 from 1 proposals, stake 1 (100.0%)") || strings.Contains(console, "\x1b") {
				t.Errorf("the console shows %q", console)
			}
		})
	}
}

// A winner's block is checked once more against the head.
func TestForgeChecks(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		h.do(func() {
			head := h.head
			stale := generateBlock(head, 70, "somebody")
			if err := h.forge(generateBlock(head, 71, "another")); err != nil {
				t.Error(err)
			}
			if err := h.forge(stale); err == nil {
				t.Error("two blocks follow the same head")
			}
			if h.head.BPM != 71 {
				t.Errorf("the head is %+v", h.head)
			}
		})
	})
}

// A terminal that comes when the server is stopping hears so.
func TestTooLate(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		h.shut()
		p := h.connect()
		p.expect(p.sees(), "Enter token balance:\nthe server is shutting down\n")
		p.expectLeft()
	})
}

// Every terminal hears who won, staked or not, and is at its prompt again.
func TestAnnouncement(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		winner, idle, stranger := h.connect(), h.connect(), h.connect()
		address := winner.joins(10)
		idle.joins(1000000)
		stranger.sees()
		winner.types("72\n")
		time.Sleep(h.roundLength)
		winner.expect(winner.sees(), "\nwinning validator: "+address+"\nyou forged block 1\n\nEnter a new BPM:")
		idle.expect(idle.sees(), "\nwinning validator: "+address+"\n\nEnter a new BPM:")
		stranger.expect(stranger.sees(), "\nwinning validator: "+address+"\nEnter token balance:")
		if want := "block 1 forged by " + address + ": ticket "; !strings.Contains(h.console.String(), want) {
			t.Errorf("the console shows %q, want %q", h.console, want)
		}
	})
}

// A round without proposals ends in silence.
func TestSilentRounds(t *testing.T) {
	s := testSettings()
	s.broadcastEvery = time.Hour
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		p := h.connect()
		p.joins(10)
		time.Sleep(10 * s.roundLength)
		p.expect(p.sees(), "")
		p.expect(p.types("72\n"), "\nblock 1 proposed with BPM 72; the winner is drawn in 30s\n\nEnter a new BPM:")
	})
}

// The chain comes every BROADCAST after a terminal connected, on a line of its own, keys in order.
func TestBroadcast(t *testing.T) {
	s := testSettings()
	s.broadcastEvery = 40 * time.Second
	s.broadcastBlocks = 2
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		first := h.connect()
		first.sees()
		time.Sleep(10 * time.Second)
		second := h.connect()
		second.joins(1)
		time.Sleep(30 * time.Second)
		genesis := h.blocks()[0]
		first.expect(first.sees(), fmt.Sprintf("\n[{\"Index\":0,\"Timestamp\":%q,\"BPM\":0,\"Hash\":%q,\"PrevHash\":\"\",\"Validator\":\"\"}]\nEnter token balance:",
			genesis.Timestamp, genesis.Hash))
		second.expect(second.sees(), "")
		time.Sleep(10 * time.Second)
		if text := second.sees(); !strings.HasPrefix(text, "\n[{") || !strings.HasSuffix(text, "}]\n\nEnter a new BPM:") {
			t.Errorf("the second terminal shows %q", text)
		}
		for range 3 { // blocks 1 to 3, of which the newest two are shown
			second.types("70\n")
			time.Sleep(s.roundLength)
		}
		time.Sleep(s.broadcastEvery)
		text := first.sees()
		broadcasts := regexp.MustCompile(`\n(\[.*\])\nEnter`).FindAllStringSubmatch(text, -1)
		blocks := parseChain(t, broadcasts[len(broadcasts)-1][1])
		if len(blocks) != 2 || blocks[0].Index != 2 || blocks[1].Index != 3 {
			t.Errorf("the broadcast holds %+v", blocks)
		}
	})
}

// BROADCAST_BLOCKS=0 shows the whole chain, however long.
func TestBroadcastWholeChain(t *testing.T) {
	s := testSettings()
	s.broadcastBlocks = 0
	s.roundLength = 10 * time.Millisecond
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		p := h.connect()
		p.joins(1)
		for range 1200 {
			p.input <- "70\n" // more than a person types: it is slowed down
			time.Sleep(2 * s.roundLength)
		}
		if n := len(h.blocks()); n != 1201 {
			t.Errorf("%d blocks", n)
		}
	})
}

// The end of the input: a proposal stands, its maker hears how the round ends, and is gone.
func TestEndOfInput(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		address := p.joins(100)
		p.types("72") // a last line without a newline counts
		p.conn.CloseWrite()
		p.expect(p.sees(), "\nblock 1 proposed with BPM 72; the winner is drawn in 30s\n\nEnter a new BPM:")
		time.Sleep(h.roundLength)
		p.expect(p.sees(), "\nwinning validator: "+address+"\nyou forged block 1\n")
		p.expectLeft()
		if n := h.validatorCount(); n != 0 {
			t.Errorf("%d validators", n)
		}
	})
}

// Without a proposal in the open round there is nothing to wait for.
func TestEndOfInputWithoutProposal(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		before, after, third := h.connect(), h.connect(), h.connect()
		before.conn.CloseWrite() // at the first prompt
		after.types("10\n")      // staked, nothing proposed
		after.conn.CloseWrite()
		third.types("10\n70\n")
		time.Sleep(h.roundLength) // its round is over
		third.conn.CloseWrite()
		for _, p := range []*person{before, after, third} {
			p.expectLeft()
		}
		if n := h.validatorCount(); n != 0 {
			t.Errorf("%d validators", n)
		}
	})
}

// A terminal that vanishes is off the list; its proposal stands, and may win.
func TestVanishing(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p, witness := h.connect(), h.connect()
		address := p.joins(100)
		p.types("72\n")
		h.do(func() { // as when the connection is reset: nothing can be read or written any more
			h.proposals[0].terminal.Close()
		})
		synctest.Wait()
		if n := h.validatorCount(); n != 0 {
			t.Errorf("%d validators", n)
		}
		p.expectLeft()
		witness.sees()
		time.Sleep(h.roundLength)
		witness.expect(witness.sees(), "\nwinning validator: "+address+"\nEnter token balance:")
	})
}

// Ctrl-C: the open round is drawn at once, kept and announced, then everybody hears goodbye.
func TestShutdown(t *testing.T) {
	s := testSettings()
	s.chainFile = filepath.Join(t.TempDir(), "chain.jsonl")
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		p, ended, stranger := h.connect(), h.connect(), h.connect()
		address := p.joins(100)
		ended.joins(1)
		ended.conn.CloseWrite()
		stranger.sees()
		p.types("72\n")
		h.stop()
		p.expect(p.sees(), "\nwinning validator: "+address+"\nyou forged block 1\n\nEnter a new BPM:\nthe server is shutting down\n")
		stranger.expect(stranger.sees(), "\nwinning validator: "+address+"\nEnter token balance:\nthe server is shutting down\n")
		p.expectLeft()
		stranger.expectLeft()
		file, err := os.ReadFile(s.chainFile)
		if err != nil || bytes.Count(file, []byte("\n")) != 2 {
			t.Errorf("the chain file holds %s, %v", file, err)
		}
	})
}

// Several lines that arrive at once are each answered, in order.
func TestPaste(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		text := p.types("\nx\n100\n72\n73\n\n74\nabc\n75\n")
		want := `Enter token balance:Enter token balance:
"x" is not a stake: it must be a whole number, such as 100
Enter token balance:
you are validator ADDRESS with 100 tokens staked

Enter a new BPM:
block 1 proposed with BPM 72; the winner is drawn in 30s

Enter a new BPM:
block 1 is already proposed with BPM 72; the next round opens in 30s

Enter a new BPM:
Enter a new BPM:
block 1 is already proposed with BPM 72; the next round opens in 30s

Enter a new BPM:
slashed: "abc" is not a pulse; 100 tokens forfeited
`
		p.expect(regexp.MustCompile("[0-9a-f]{64}").ReplaceAllString(text, "ADDRESS"), want)
		p.expectLeft()
	})
}

// However fast somebody types, nobody else waits; a terminal that does not read is cut off, the
// console says so, and its proposal stands.
func TestNotReading(t *testing.T) {
	s := testSettings()
	s.roundLength = time.Second
	inVirtualTime(t, s, func(t *testing.T, h *hall) {
		toServer, atServer := net.Pipe()
		_, toClient := net.Pipe() // nobody reads there
		served := make(chan struct{})
		go func() {
			h.handleConn(duplex{in: atServer, out: toClient})
			close(served)
		}()
		go toServer.Write([]byte("100\n72\n"))
		p := h.connect()
		p.joins(1)
		p.types("70\n")
		time.Sleep(s.roundLength)
		if text := p.sees(); !strings.Contains(text, "winning validator") {
			t.Errorf("waits for a terminal that does not read: %q", text)
		}
		time.Sleep(10 * time.Second)
		<-served
		time.Sleep(time.Second)
		if text := h.stderr.String(); text != "1 terminals cut off: they did not read\n" {
			t.Errorf("the console says %q", text)
		}
		toServer.Close()
	})
}

// Up to 20 validators are all on the console, past that the newest and the totals.
func TestConsole(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		if console := h.console.String(); !strings.Contains(console, "(main.Block) {\n Index: (int) 0,") || !strings.Contains(console, h.blocks()[0].Hash) {
			t.Errorf("no genesis block: %q", console)
		}
		var addresses []string
		for i := range 21 {
			shown := len(h.console.String())
			addresses = append(addresses, h.connect().joins(math.MaxInt64))
			time.Sleep(time.Second)
			console := h.console.String()[shown:]
			total := new(big.Int).Mul(big.NewInt(math.MaxInt64), big.NewInt(int64(i+1)))
			if want := fmt.Sprintf("validators: %d with %d tokens staked\n", i+1, total); !strings.HasPrefix(console, want) {
				t.Fatalf("the console shows %q, want %q", console, want)
			}
			for j, address := range addresses {
				if want := i < 20 || j == i; want != strings.Contains(console, fmt.Sprintf("  %s %d\n", address, int64(math.MaxInt64))) {
					t.Errorf("after %d have joined: validator %d is shown: %v", i+1, j+1, !want)
				}
			}
		}
	})
}

// A crowd that comes at once is one report, not thousands.
func TestConsoleIsNotFlooded(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		for range 500 {
			h.connect().joins(1)
		}
		time.Sleep(2 * time.Second)
		if n := strings.Count(h.console.String(), "validators: "); n > 2 || !strings.Contains(h.console.String(), "validators: 500 with 500 tokens") {
			t.Errorf("%d reports: %s", n, h.console)
		}
	})
}

// An address is a SHA-256, new for each stake.
func TestAddresses(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		seen := map[string]bool{}
		for range 100 {
			seen[h.connect().joins(1)] = true // in virtual time, all at the same instant
		}
		if len(seen) != 100 {
			t.Errorf("%d addresses for 100 stakes", len(seen))
		}
	})
}

// FuzzTerminal: whatever a terminal sends, in whatever pieces, the server answers each line or
// closes, and others play on.
func FuzzTerminal(f *testing.F) {
	f.Add([]byte("100\n72\n"), uint8(3))
	f.Add([]byte("100\r\n\r\n72\r\n73\nabc\n"), uint8(1))
	f.Add([]byte("\x00\xff\n\n0\n-1\n"), uint8(200))
	f.Add(append(bytes.Repeat([]byte("x"), 5000), "\n5\n60"...), uint8(64))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: localhost:9000\r\n\r\n"), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
			p, other := h.connect(), h.connect()
			other.joins(1)
			other.types("70\n")
			go func() {
				for piece := range slices.Chunk(data, int(size)+1) {
					if _, err := p.conn.Write(piece); err != nil {
						break
					}
				}
				p.conn.CloseWrite()
			}()
			time.Sleep(h.roundLength + time.Duration(len(data))*20*time.Millisecond) // no line costs more
			synctest.Wait()
			if !strings.Contains(other.sees(), "\nwinning validator: ") {
				t.Error("others hear nothing of the round")
			}
			time.Sleep(2 * h.roundLength)
			p.expectLeft()
			text := p.screen.String()
			lines := bytes.Count(data, []byte("\n"))
			answers := strings.Count(text, "Enter token balance:") + strings.Count(text, "\nEnter a new BPM:")
			left := strings.Contains(text, "goodbye") || strings.Contains(text, "slashed")
			if !left && answers < lines+1 {
				t.Errorf("%d lines, %d prompts: %q", lines, answers, text)
			}
			if len(text) > 200*(lines+10) {
				t.Errorf("%d bytes for %d lines", len(text), lines)
			}
		})
	})
}

// ---- The lottery ----

// draw is the draw of a round: it returns the winner's index.
func draw(stakes []int64) int {
	totals := runningTotals(stakes)
	return ticketHolder(totals, drawTicket(totals[len(totals)-1]))
}

// Over every ticket of a pool each proposer wins exactly as many as it staked.
func TestTicketHolderExactly(t *testing.T) {
	for _, stakes := range [][]int64{{1}, {1, 2, 7}, {5, 1, 1, 9, 3}, {100, 1}, slices.Repeat([]int64{3}, 50)} {
		won := make([]int64, len(stakes))
		totals := runningTotals(stakes)
		for ticket := int64(1); ticket <= totals[len(totals)-1].Int64(); ticket++ {
			won[ticketHolder(totals, big.NewInt(ticket))]++
		}
		if !slices.Equal(won, stakes) {
			t.Errorf("stakes %v win %v tickets", stakes, won)
		}
	}
}

// The edges of stakes whose sum passes 64 bits belong to whom they should.
func TestTicketHolderOfHugeStakes(t *testing.T) {
	stakes := []int64{math.MaxInt64, 1, math.MaxInt64, math.MaxInt64}
	totals := runningTotals(stakes)
	edge := new(big.Int)
	for i, stake := range stakes {
		first := new(big.Int).Add(edge, big.NewInt(1))
		edge.Add(edge, big.NewInt(stake))
		if got := ticketHolder(totals, first); got != i {
			t.Errorf("ticket %d is of %d, want %d", first, got, i)
		}
		if got := ticketHolder(totals, edge); got != i {
			t.Errorf("ticket %d is of %d, want %d", edge, got, i)
		}
	}
	if total := totals[len(totals)-1]; total.Cmp(edge) != 0 || total.BitLen() <= 64 {
		t.Errorf("the total is %d, want %d", total, edge)
	}
}

// The draw is fair: chi-square over 100,000 draws, as far off as once in a million times at most.
func TestDrawIsFair(t *testing.T) {
	near := int64(math.MaxInt64)
	for name, stakes := range map[string][]int64{
		"1:2:7":                  {1, 2, 7},
		"1,000 equal stakes":     slices.Repeat([]int64{1}, 1000),
		"stakes near 2^63":       {near, near - 1, near / 2, near - 1000},
		"a total of 3/4 of 2^64": {1 << 62, 1 << 62, 1 << 62}, // a modulus would favour the first, two to one
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const draws = 100_000
			won := make([]float64, len(stakes))
			totals := runningTotals(stakes)
			total := totals[len(totals)-1]
			for range draws {
				won[ticketHolder(totals, drawTicket(total))]++
			}
			sum, _ := new(big.Float).SetInt(total).Float64()
			var chi2 float64
			degrees := -1.0
			for i, stake := range stakes {
				expected := draws * float64(stake) / sum
				if expected < 5 { // too small for the test: such a one must just not win much
					if won[i] > 20 {
						t.Errorf("stake %d of %d won %v of %d draws", stake, total, won[i], draws)
					}
					continue
				}
				degrees++
				chi2 += (won[i] - expected) * (won[i] - expected) / expected
			}
			if limit := chiSquareLimit(degrees); chi2 > limit {
				t.Errorf("chi-square %.1f for %.0f degrees of freedom, limit %.1f", chi2, degrees, limit)
			}
		})
	}
}

// chiSquareLimit is what chi-square passes with a probability of less than 1e-6 (Wilson and Hilferty's
// approximation, with the normal quantile of 1e-6).
func chiSquareLimit(degrees float64) float64 {
	v := 2 / (9 * degrees)
	return degrees * math.Pow(1-v+4.7534*math.Sqrt(v), 3)
}

// ---- What the tutorial's program dies of ----

// A stake of 0 or less, alone in a round, panics there: rand.Intn(0).
func TestStakeOfNothingAlone(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		for _, typed := range []string{"0\n", "-5\n"} {
			if text := p.types(typed); !strings.Contains(text, "is not a stake") {
				t.Errorf("%q: %q", typed, text)
			}
		}
		p.joins(1)
		p.types("70\n")
		time.Sleep(h.roundLength)
		if text := p.sees(); !strings.Contains(text, "you forged block 1") {
			t.Errorf("the round is lost: %q", text)
		}
	})
}

// A BPM of abc panics there 30 seconds later.
func TestOneWrongBPM(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p, other := h.connect(), h.connect()
		p.joins(100)
		other.joins(1)
		if text := p.types("abc\n"); !strings.Contains(text, "slashed") {
			t.Errorf("abc: %q", text)
		}
		p.expectLeft()
		for range 3 {
			other.types("70\n")
			time.Sleep(h.roundLength)
			if text := other.sees(); !strings.Contains(text, "you forged block") {
				t.Errorf("the other does not play on: %q", text)
			}
		}
	})
}

// Stake and BPM in one packet: the first scanner there swallows the second line.
func TestStakeAndBPMInOnePacket(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		p := h.connect()
		text := p.types("100\n72\n")
		if !strings.Contains(text, "100 tokens staked") || !strings.Contains(text, "proposed with BPM 72") {
			t.Errorf("not both are answered: %q", text)
		}
	})
}

// Each terminal that leaves burns a core there, for ever. Here no goroutine is left, whatever way it went;
// inVirtualTime fails if one is, and virtual time stands still if one is busy.
func TestLeavingLeavesNothing(t *testing.T) {
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		ways := []func(p *person){
			func(p *person) { p.leaves() },
			func(p *person) { p.joins(1); p.leaves() },
			func(p *person) { p.joins(1); p.types("70\n"); p.leaves() },
			func(p *person) { p.types("x\nx\nx\n") },
			func(p *person) { p.joins(1); p.types("x\n") },
			func(p *person) { p.types("7"); p.leaves() },
			func(p *person) { p.joins(1); p.types("70\n"); p.conn.CloseWrite() },
		}
		for i := range 20 * len(ways) {
			p := h.connect()
			ways[i%len(ways)](p)
		}
		time.Sleep(2 * h.roundLength)
		synctest.Wait()
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		for _, of := range []string{"handleConn", "writePatiently"} {
			if bytes.Contains(stacks, []byte(of)) {
				t.Errorf("a goroutine is left in %s: %s", of, stacks)
			}
		}
		if n := h.validatorCount(); n != 0 {
			t.Errorf("%d validators", n)
		}
		h.do(func() {
			if len(h.proposals) != 0 || h.staked.Sign() != 0 {
				t.Errorf("%d proposals, %d tokens are left", len(h.proposals), h.staked)
			}
		})
	})
}

// Tokens take memory there, one string each. Here a draw of the largest stakes takes as much as one of the smallest.
func TestMemoryOfHugeStakes(t *testing.T) {
	bytesOf := func(stake int64) uint64 {
		stakes := []int64{stake, stake, stake}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 1000 {
			draw(stakes)
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / 1000
	}
	small, large := bytesOf(1), bytesOf(math.MaxInt64)
	if large > small+256 { // numbers of three words instead of one
		t.Errorf("a draw among stakes of 1 takes %d bytes, among stakes of 2^63-1 %d", small, large)
	}
	inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
		people := []*person{h.connect(), h.connect(), h.connect()}
		for _, p := range people {
			p.joins(math.MaxInt64)
			p.types("70\n")
		}
		time.Sleep(h.roundLength)
		if text := people[0].sees(); !strings.Contains(text, "winning validator") {
			t.Errorf("no winner: %q", text)
		}
		if !strings.Contains(h.console.String(), " of 27670116110564327421 from 3 proposals, stake 9223372036854775807 (33.3%)") {
			t.Errorf("the console shows %s", h.console)
		}
	})
}

// A proposal made while the round is drawn forks the chain there or is lost. Here, in rounds of 1 ms
// in real time, each one counts in exactly one round, and every block follows the one before.
func TestRoundBoundary(t *testing.T) {
	s := testSettings()
	s.roundLength = time.Millisecond
	s.broadcastEvery = time.Hour
	s.broadcastBlocks = 0
	h := open(t, s)
	var mu sync.Mutex
	accepted := map[int][]string{} // block: proposers whose answer said so
	proposed := regexp.MustCompile(`block (\d+) proposed with BPM (\d+);`)
	var crowd sync.WaitGroup
	for range 24 {
		crowd.Go(func() {
			client, server := net.Pipe()
			defer client.Close()
			crowd.Go(func() { h.handleConn(server) })
			// Output is matched with proposals as it comes: an announcement ends a wait.
			lines := make(chan string, 1000)
			crowd.Go(func() {
				defer close(lines)
				var text []byte
				buf := make([]byte, 4096)
				for {
					n, err := client.Read(buf)
					if err != nil {
						return
					}
					text = append(text, buf[:n]...)
					for {
						line, rest, found := bytes.Cut(text, []byte("\n"))
						if !found {
							break
						}
						lines <- string(line)
						text = rest
					}
				}
			})
			fmt.Fprintf(client, "%d\n", 1+rand.IntN(10))
			var address string
			waiting := "" // the block that our proposal is for
			for made := 0; made < 80 || waiting != ""; {
				if waiting == "" {
					time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
					fmt.Fprintf(client, "%d\n", 60+made)
				}
				for line := range lines {
					if m := regexp.MustCompile("you are validator (.{64})").FindStringSubmatch(line); m != nil {
						address = m[1]
					}
					if strings.Contains(line, "is already proposed") {
						t.Errorf("told %q with no proposal open", line)
					}
					if m := proposed.FindStringSubmatch(line); m != nil {
						made++
						waiting = m[1]
						mu.Lock()
						var index int
						fmt.Sscan(m[1], &index)
						accepted[index] = append(accepted[index], address)
						mu.Unlock()
					}
					// Its own round's end is the first that it hears of after the answer.
					if strings.HasPrefix(line, "winning validator: ") && waiting != "" {
						waiting = ""
						break
					}
				}
			}
		})
	}
	crowd.Wait()
	blocks := h.blocks()
	for _, b := range blocks[1:] {
		if !slices.Contains(accepted[b.Index], b.Validator) {
			t.Errorf("block %d was won by a validator without a proposal for it", b.Index)
		}
	}
	decided := 0
	for index, proposers := range accepted {
		if index >= len(blocks) {
			t.Errorf("proposals for block %d, which was never drawn", index)
		}
		slices.Sort(proposers)
		if n := len(proposers); len(slices.Compact(proposers)) != n {
			t.Errorf("somebody counts twice for block %d", index)
		}
		decided += len(proposers)
	}
	if decided < 24*80 {
		t.Errorf("%d proposals decided, %d made", decided, 24*80)
	}
	h.shut()
	h.close()
}

// 2,000 validators: the tutorial's map dies of concurrent access after 200 to 400.
func TestTwoThousandValidators(t *testing.T) {
	s := testSettings()
	s.roundLength = 100 * time.Millisecond
	s.maxClients = 0
	h := open(t, s)
	var crowd, staked, heard sync.WaitGroup
	staked.Add(2000)
	heard.Add(2000)
	for range 2000 {
		client, server := net.Pipe()
		crowd.Go(func() { h.handleConn(server) })
		crowd.Go(func() {
			var text []byte
			buf := make([]byte, 512)
			said, won := false, false
			for {
				n, err := client.Read(buf)
				if err != nil {
					return
				}
				if text = append(text, buf[:n]...); !said && bytes.Contains(text, []byte("1 tokens staked")) {
					said = true
					staked.Done()
				}
				if !won && bytes.Contains(text, []byte("winning validator")) {
					won = true
					heard.Done()
				}
			}
		})
		go fmt.Fprint(client, "1\n")
	}
	staked.Wait()
	if n := h.validatorCount(); n != 2000 {
		t.Errorf("%d validators", n)
	}
	client, server := net.Pipe()
	crowd.Go(func() { h.handleConn(server) })
	go io.Copy(io.Discard, client)
	fmt.Fprint(client, "1\n72\n")
	heard.Wait()
	h.shut()
	crowd.Wait()
	h.close()
}

// The tutorial seeds the draw with the clock in seconds. Here two servers started at the same instant,
// with the same proposals, draw independently.
func TestNobodyPredictsTheDraw(t *testing.T) {
	addresses := map[string]bool{}
	winners := func() (who []int) {
		inVirtualTime(t, testSettings(), func(t *testing.T, h *hall) {
			var people []*person
			for range 4 {
				p := h.connect()
				addresses[p.joins(1)] = true
				people = append(people, p)
			}
			for range 40 {
				for _, p := range people {
					p.types("70\n")
				}
				time.Sleep(h.roundLength)
				for i, p := range people {
					if strings.Contains(p.sees(), "you forged") {
						who = append(who, i)
					}
				}
			}
		})
		return who
	}
	a, b := winners(), winners() // virtual time starts at the same instant
	if len(a) != 40 || len(b) != 40 {
		t.Fatalf("%d and %d rounds won", len(a), len(b))
	}
	if slices.Equal(a, b) { // by chance once in 4^40 times
		t.Errorf("both draw %v", a)
	}
	if len(addresses) != 8 {
		t.Errorf("%d addresses for 8 validators", len(addresses))
	}
}

// A broadcast of 1,000 blocks to 1,000 terminals shares its bytes.
func TestBroadcastSharesItsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testSettings()
		h := open(t, s)
		h.do(func() {
			for range 1000 {
				if err := h.forge(generateBlock(h.head, 70, calculateHash("x"))); err != nil {
					t.Fatal(err)
				}
			}
		})
		var heard atomic.Int64
		for range 1000 {
			client, server := net.Pipe()
			go h.handleConn(server)
			go func() {
				for buf := make([]byte, 64<<10); ; {
					n, err := client.Read(buf)
					if heard.Add(int64(n)); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(2*s.broadcastEvery - time.Second) // once to warm up
		synctest.Wait()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		heard.Store(0)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		runtime.ReadMemStats(&after)
		size := heard.Load() / 1000
		if size < 100*1000 {
			t.Errorf("a broadcast of 1,000 blocks has %d bytes", size)
		}
		if taken := int64(after.TotalAlloc - before.TotalAlloc); taken > 10*size {
			t.Errorf("1,000 broadcasts of %d bytes each take %d bytes", size, taken)
		}
		h.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		h.close()
	})
}

// 20,000 connections come, stake, propose, misbehave in turn and leave: goroutines, memory and
// validators are back where they were.
func TestTwentyThousandComeAndGo(t *testing.T) {
	s := testSettings()
	s.addr, s.roundLength = "127.0.0.1:0", 20*time.Millisecond
	n, err := newNetwork(s, io.Discard, log.New(io.Discard, "", 0))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		n.serve(ctx, ln.(*net.TCPListener))
		close(served)
	}()
	visits := []struct {
		says      string
		halfClose bool
	}{
		{"", false}, {"5\n", false}, {"5\n70\n", false}, {"5\n70\n", true}, {"5\nabc\n", false}, {"x\nx\nx\n", true}, {"5", true},
		{"\n\n\n5\n1\n2\n3\n" + strings.Repeat("y", 2000), false},
	}
	wave := func() { // 500 at once
		var crowd sync.WaitGroup
		for i := range 500 {
			visit := visits[i%len(visits)]
			crowd.Go(func() {
				conn, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, visit.says)
				if visit.halfClose {
					conn.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, conn)
				} else {
					conn.Read(make([]byte, 100))
				}
			})
		}
		crowd.Wait()
	}
	// settled returns how many goroutines there are, and how much memory, when all have left and no more than
	// enough goroutines are there, or after half a minute.
	settled := func(enough int) (goroutines int, memory uint64) {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			var left int
			n.do(func() { left = len(n.proposals) + len(n.validators) })
			goroutines = runtime.NumGoroutine()
			if left == 0 && goroutines <= enough || time.Now().After(deadline) {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return goroutines, m.HeapAlloc + m.StackInuse
			}
		}
	}
	enough := runtime.NumGoroutine() + 2
	wave()
	goroutines, memory := settled(enough)
	for range 39 {
		wave()
	}
	goroutinesAfter, memoryAfter := settled(enough)
	if goroutinesAfter > enough {
		t.Errorf("%d goroutines, before %d", goroutinesAfter, goroutines)
	}
	if memoryAfter > memory+2<<20 {
		t.Errorf("%d bytes of memory, before %d", memoryAfter, memory)
	}
	stop()
	<-served
	if n.staked.Sign() != 0 || len(n.validators) != 0 {
		t.Errorf("%d validators, %d tokens are left", len(n.validators), n.staked)
	}
}

// ---- Settings ----

func TestSettings(t *testing.T) {
	with := func(pairs ...string) (settings, error) {
		return loadSettings(func(name string) (string, bool) {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1], true
				}
			}
			return "", false
		})
	}
	defaults := settings{":9000", 30 * time.Second, time.Minute, 1000, "chain.jsonl", 10000}
	if got, err := with(); err != nil || got != defaults {
		t.Errorf("defaults: %+v, %v", got, err)
	}
	want := settings{"127.0.0.1:0", time.Millisecond, 2 * time.Hour, 0, "", 0}
	if got, err := with("ADDR", "127.0.0.1:0", "ROUND", "1ms", "BROADCAST", "2h", "BROADCAST_BLOCKS", "0", "CHAIN_FILE", "", "MAX_CLIENTS", "0"); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range [][2]string{
		{"ADDR", "x"}, {"ADDR", ""}, {"ADDR", "70000"}, {"ADDR", "localhost"}, {"ADDR", "localhost:http"}, {"ADDR", "1:2:3"},
		{"ROUND", "0"}, {"ROUND", "0s"}, {"ROUND", "-1s"}, {"ROUND", "abc"}, {"ROUND", "30"}, {"ROUND", ""},
		{"BROADCAST", "0"}, {"BROADCAST", "1 m"}, {"BROADCAST_BLOCKS", "-1"}, {"BROADCAST_BLOCKS", "all"}, {"MAX_CLIENTS", "-1"}, {"MAX_CLIENTS", "1e4"},
	} {
		_, err := with(bad[0], bad[1])
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("%s=%q", bad[0], bad[1])) || !strings.Contains(err.Error(), "want ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s=%s: error %v", bad[0], bad[1], err)
		}
	}
}

// ---- Benchmarks ----

// BenchmarkDraw is the draw of one round: time and memory grow with the proposers and not with their tokens.
func BenchmarkDraw(b *testing.B) {
	for _, proposers := range []int{100, 10_000, 100_000} {
		for _, tokens := range []int64{1000, 10_000, math.MaxInt64} {
			b.Run(fmt.Sprintf("proposers=%d/tokens=%d", proposers, tokens), func(b *testing.B) {
				stakes := slices.Repeat([]int64{tokens}, proposers)
				b.ReportAllocs()
				for b.Loop() {
					draw(stakes)
				}
			})
		}
	}
}

// BenchmarkTutorialDraw is the tutorial's way: a pool with one entry for each token, and each proposer is looked for
// in the pool so far.
func BenchmarkTutorialDraw(b *testing.B) {
	for _, tokens := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("proposers=100/tokens=%d", tokens), func(b *testing.B) {
			proposers := make([]string, 100)
			for i := range proposers {
				proposers[i] = calculateHash(fmt.Sprint(i))
			}
			b.ReportAllocs()
			for b.Loop() {
				pool := []string{}
			next:
				for _, proposer := range proposers {
					for _, entry := range pool {
						if entry == proposer {
							continue next
						}
					}
					for range tokens {
						pool = append(pool, proposer)
					}
				}
				r := rand.New(rand.NewPCG(uint64(time.Now().Unix()), 0))
				if pool[r.IntN(len(pool))] == "" {
					b.Fatal("no winner")
				}
			}
		})
	}
}

// BenchmarkReplay reads and verifies a chain file, beside the floor: the same lines read, decoded with
// encoding/json and hashed once. peak-KiB is the most that the heap holds meanwhile.
func BenchmarkReplay(b *testing.B) {
	for _, blocks := range []int{10_000, 100_000, 1_000_000} {
		name := filepath.Join(b.TempDir(), "chain.jsonl")
		writeChain(b, name, blocks)
		run := func(way string, read func(f *os.File, each func()) error) {
			b.Run(fmt.Sprintf("%s/blocks=%d", way, blocks), func(b *testing.B) {
				var peak uint64
				for b.Loop() {
					f, err := os.Open(name)
					if err != nil {
						b.Fatal(err)
					}
					n := 0
					err = read(f, func() {
						if n++; n%(blocks/10) == 0 {
							heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
							metrics.Read(heap)
							peak = max(peak, heap[0].Value.Uint64())
						}
					})
					if f.Close(); err != nil || n != blocks {
						b.Fatal(n, err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*blocks), "ns/block")
				b.ReportMetric(float64(peak)/1024, "peak-KiB")
			})
		}
		run("floor", func(f *os.File, each func()) error {
			_, err := linefile.Read(f, func(line []byte) error {
				var block Block
				err := json.Unmarshal(line, &block)
				calculateBlockHash(block)
				each()
				return err
			})
			return err
		})
		run("replay", func(f *os.File, each func()) error {
			read := func(fn func([]byte) error) ([]byte, error) { return linefile.Read(f, fn) }
			_, _, err := readChain(read, func(Block, []byte) { each() })
			return err
		})
	}
}

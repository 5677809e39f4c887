package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// Block is a block as the contract has it. This program has its own, and its own hash,
// so that a fault in the server's cannot hide.
type Block struct {
	Index     int
	Timestamp string
	BPM       int
	Hash      string
	PrevHash  string
	Validator string
}

// fault says why line cannot be the block after head (nil: the first); "" if it can.
func (head *Block) fault(line []byte) (b Block, fault string) {
	if err := json.Unmarshal(line, &b); err != nil {
		return b, err.Error()
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%d\n%s\n%s\n", b.Index, b.Timestamp, b.BPM, b.PrevHash, b.Validator))
	form, _ := json.Marshal(b)
	when, err := time.Parse("2006-01-02T15:04:05.000000000Z", b.Timestamp)
	switch {
	case !bytes.Equal(form, line):
		fault = "not in the form of a block"
	case err != nil || when.IsZero():
		fault = "wrong timestamp"
	case b.Hash != hex.EncodeToString(sum[:]):
		fault = "wrong hash"
	case head == nil && (b.Index != 0 || b.BPM != 0 || b.PrevHash != "" || b.Validator != ""):
		fault = "no genesis block"
	case head != nil && b.Index != head.Index+1:
		fault = fmt.Sprintf("wrong index after block %d", head.Index)
	case head != nil && b.PrevHash != head.Hash:
		fault = "wrong link"
	case head != nil && len(b.Validator) != 64:
		fault = "no validator"
	}
	return b, fault
}

// ledger is what all the terminals of the run have seen and done together, and the
// chain file, read by the same rules as a server would.
type ledger struct {
	soak  *soak
	file  string
	limit int // blocks in a broadcast

	mu        sync.Mutex
	blocks    []Block  // of the file
	lines     [][]byte // the same, as they stand there
	size      int64    // of those lines with their newlines
	heard     map[int]announcement
	addresses map[string]*terminal
	proposals map[int]*proposal // by BPM: each BPM is typed once in a run
	nextBPM   int
	won       map[int]bool // the BPMs in the chain
}

// announcement is the winner of a block, and the server that announced it.
type announcement struct {
	address string
	epoch   *epoch
}

// proposal is a BPM that a terminal types, once.
type proposal struct {
	terminal *terminal
	state    state
	index    int // of the block for which it was accepted
}

type state int

const (
	typed    state = iota // or only meant to be typed: not answered
	accepted              // "block <index> proposed"
	doubtful              // accepted, but what its terminal typed after that may have voided it
	refused               // answered otherwise, or after the last words: it must never win
	void                  // accepted, then slashed: it must never win
)

func newLedger(s *soak, file string, limit int) *ledger {
	return &ledger{soak: s, file: file, limit: limit, heard: map[int]announcement{},
		addresses: map[string]*terminal{}, proposals: map[int]*proposal{}, won: map[int]bool{}}
}

// read takes in what the chain file holds beyond what is known. A last line without its
// newline does not count yet.
func (l *ledger) read() {
	f, err := os.Open(l.file)
	if err != nil {
		l.soak.fail("the chain file: %v", err)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < l.size {
		l.soak.fail("the chain file has shrunk below its %d bytes of whole lines (%v)", l.size, err)
		return
	}
	added := make([]byte, info.Size()-l.size)
	n, _ := f.ReadAt(added, l.size) // less, if a torn line has been cut off meanwhile
	added = added[:n]
	for {
		end := bytes.IndexByte(added, '\n')
		if end < 0 {
			return
		}
		line := bytes.Clone(added[:end])
		var head *Block
		if n := len(l.blocks); n > 0 {
			head = &l.blocks[n-1]
		}
		block, fault := head.fault(line)
		if fault != "" {
			l.soak.fail("the chain file, line %d: %s: %q", len(l.blocks)+1, fault, line)
			return
		}
		l.blocks = append(l.blocks, block)
		l.lines = append(l.lines, line)
		l.size += int64(end + 1)
		l.soak.checks.Add(1)
		added = added[end+1:]
	}
}

// length reads the file and returns how many blocks it holds, and whether the hash of
// the last of the first n is hash.
func (l *ledger) length(n int, hash string) (blocks int, same bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	return len(l.blocks), 0 < n && n <= len(l.blocks) && l.blocks[n-1].Hash == hash
}

// head is the index of the newest block that was read; -1 if there is none.
func (l *ledger) head() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.blocks) - 1
}

// reread checks that the file still begins with all that was ever read from it, and
// returns what comes after its last newline.
func (l *ledger) reread() (torn []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read()
	data, err := os.ReadFile(l.file)
	if err != nil {
		l.soak.fail("the chain file: %v", err)
		return nil
	}
	known := append(bytes.Join(l.lines, []byte("\n")), '\n')
	if !bytes.HasPrefix(data, known) {
		l.soak.fail("the chain file no longer begins with the %d blocks that it held", len(l.lines))
		return nil
	}
	l.soak.checks.Add(1)
	return data[len(known):]
}

// newBPM is a number that no terminal has typed.
func (l *ledger) newBPM(t *terminal) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	bpm := l.nextBPM
	if l.nextBPM++; bpm%10 == 9 {
		bpm = math.MaxInt - bpm
	}
	l.proposals[bpm] = &proposal{terminal: t}
	return bpm
}

// newValidator notes that t got address: no other ever had it.
func (l *ledger) newValidator(t *terminal, address string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addresses[address] != nil {
		return fmt.Errorf("address %s a second time", address)
	}
	l.addresses[address] = t
	return nil
}

// listed checks a stake that the console shows.
func (l *ledger) listed(address, stake string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.soak.checks.Add(1)
	if t := l.addresses[address]; t != nil && strconv.FormatInt(t.stake, 10) != stake {
		return fmt.Errorf("it staked %d", t.stake)
	}
	if stake == "0" {
		return errors.New("nobody can stake that")
	}
	return nil
}

// decide notes how the BPM that t typed was answered.
func (l *ledger) decide(t *terminal, bpm int, s state, index int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.proposals[bpm]
	if p == nil || p.terminal != t {
		if s == accepted {
			return fmt.Errorf("BPM %d is not one that this terminal typed", bpm)
		}
		return nil // a number that was meant as something else
	}
	p.state, p.index = s, index
	return nil
}

// announced notes that t heard that block index was won by address. Whoever hears it
// first looks into the file, too: it was durable before.
func (l *ledger) announced(t *terminal, index int, address string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.heard[index]
	if ok && known.address != address {
		return fmt.Errorf("block %d was won by %s, others heard %s (epoch %d)", index, address, known.address, known.epoch.number)
	}
	if !ok {
		l.heard[index] = announcement{address, t.epoch}
		l.read()
		if index >= len(l.blocks) {
			return fmt.Errorf("block %d is announced but not in the chain file", index)
		}
		if t.epoch.trap.CompareAndSwap(true, false) {
			t.epoch.kill()
		}
	}
	if index < len(l.blocks) && l.blocks[index].Validator != address {
		return fmt.Errorf("block %d was won by %s, in the file by %s", index, address, l.blocks[index].Validator)
	}
	return nil
}

var firstIndex = regexp.MustCompile(`^\{"Index":([0-9]{1,9}),`)

// broadcast checks the inside of a broadcast: the newest blocks, the same bytes as in the
// file, whose links and hashes read has checked. It returns the index of the head.
func (l *ledger) broadcast(chain []byte) (head int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := firstIndex.FindSubmatch(chain)
	if m == nil {
		return 0, fmt.Errorf("a broadcast that does not begin with a block")
	}
	first, _ := strconv.Atoi(string(m[1]))
	for i := first; ; i++ {
		if i >= len(l.blocks) {
			l.read()
		}
		if i >= len(l.blocks) {
			return 0, fmt.Errorf("a broadcast with block %d, which is not in the chain file", i)
		}
		rest, ok := bytes.CutPrefix(chain, l.lines[i])
		if !ok {
			return 0, fmt.Errorf("a broadcast with another block %d than the file's %s", i, l.lines[i])
		}
		if len(rest) == 0 {
			if want := min(l.limit, i+1); i-first+1 != want {
				return 0, fmt.Errorf("a broadcast of %d blocks up to %d, want %d", i-first+1, i, want)
			}
			return i, nil
		}
		if chain, ok = bytes.CutPrefix(rest, []byte(",")); !ok {
			return 0, fmt.Errorf("a broadcast with something after block %d", i)
		}
	}
}

// settle checks all that can only be checked when an epoch is over, its server gone and
// every terminal at its end: e.first to e.head are the blocks of that server.
func (l *ledger) settle(e *epoch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fail := func(format string, args ...any) {
		l.soak.fail("epoch %d (blocks %d to %d, %s): %s", e.number, e.first, e.head, e.fate(), fmt.Sprintf(format, args...))
	}

	// What was announced is in the file.
	for index, a := range l.heard {
		if a.epoch != e {
			continue
		}
		delete(l.heard, index)
		l.soak.heard++
		if index < e.first || index > e.head || l.blocks[index].Validator != a.address {
			fail("block %d by %s was announced but is not in the file", index, a.address)
		}
	}
	for _, t := range e.ended {
		if n := len(t.unplaced); n > 0 && t.next == 0 && !l.consecutive(e, t.unplaced) {
			fail("%s heard of %d winners who are not in the file in that order: %.12q", t.name, n, t.unplaced)
		}
		if t.dismissed && t.next > 0 && t.next != e.head+1 {
			fail("%s was told of the shutdown before it was told of block %d", t.name, t.next)
		}
	}

	// Every block is a proposal of a validator of this server, accepted for this block.
	for _, b := range l.blocks[max(e.first, 1) : e.head+1] {
		p := l.proposals[b.BPM]
		switch {
		case p == nil:
			fail("block %d has BPM %d, which nobody typed", b.Index, b.BPM)
			continue
		case p.terminal.epoch != e:
			fail("block %d has BPM %d, which was typed to another server", b.Index, b.BPM)
		case p.state == refused || p.state == void:
			fail("block %d has BPM %d of %s, which was %s", b.Index, b.BPM, p.terminal.name,
				map[state]string{refused: "not accepted", void: "void after a slash"}[p.state])
		case p.state != typed && p.index != b.Index:
			fail("block %d has BPM %d of %s, which was proposed for block %d", b.Index, b.BPM, p.terminal.name, p.index)
		case p.terminal.address == "":
			p.terminal.address = b.Validator // it left before it could read that
		case p.terminal.address != b.Validator:
			fail("block %d with BPM %d is by %s, its proposer was %s", b.Index, b.BPM, b.Validator, p.terminal.address)
		}
		if l.won[b.BPM] {
			fail("block %d has the proposal with BPM %d, which won before", b.Index, b.BPM)
		}
		l.won[b.BPM] = true
		l.soak.checks.Add(1)
	}

	// Every proposal was decided, and the draw was between them all.
	type ballot struct {
		certain, uncertain int
		tokens             *big.Int
	}
	ballots := map[int]*ballot{}
	unanswered := 0
	for bpm, p := range l.proposals {
		if p.terminal.epoch != e {
			continue
		}
		delete(l.proposals, bpm)
		if p.state == typed && p.terminal.inDoubt {
			unanswered++
		}
		if p.state != accepted && p.state != doubtful {
			continue
		}
		if p.index < e.first || p.index > e.head && e.stopped() || p.index > e.head+1 {
			fail("%s: BPM %d was proposed for block %d, which was never forged", p.terminal.name, bpm, p.index)
		}
		b := ballots[p.index]
		if b == nil {
			b = &ballot{tokens: new(big.Int)}
			ballots[p.index] = b
		}
		if p.state == doubtful {
			b.uncertain++
		} else {
			b.certain++
			b.tokens.Add(b.tokens, big.NewInt(p.terminal.stake))
		}
	}
	for index, b := range ballots {
		draw, ok := e.draws[index]
		if !ok {
			continue
		}
		switch more := draw.tokens.Cmp(b.tokens); {
		case draw.proposals < b.certain:
			fail("block %d was drawn from %d proposals, but %d were accepted", index, draw.proposals, b.certain)
		case draw.proposals > b.certain+b.uncertain+unanswered:
			fail("block %d was drawn from %d proposals, but no more than %d were made", index, draw.proposals, b.certain+b.uncertain+unanswered)
		case more < 0 || more > 0 && draw.proposals == b.certain:
			fail("block %d was drawn from %v tokens, but %v were staked by %d of its %d proposers", index, draw.tokens, b.tokens, b.certain, draw.proposals)
		}
		l.soak.checks.Add(1)
	}
	for index, draw := range e.draws {
		if index < e.first || index > e.head || l.blocks[index].Validator != draw.winner {
			fail("the console says that block %d was forged by %s", index, draw.winner)
		} else if t := l.addresses[draw.winner]; t != nil && t.stake != 0 && t.stake != draw.stake {
			fail("the console says that block %d was forged with stake %d, but it is %d", index, draw.stake, t.stake)
		}
	}
	if n := e.head - max(e.first, 1) + 1; len(e.draws) < n-1 || len(e.draws) < n && e.stopped() {
		fail("the console shows %d draws for %d blocks", len(e.draws), n)
	}
	e.ended, e.draws = nil, nil
	for address, t := range l.addresses {
		if t.epoch == e {
			l.addresses[address] = gone
		}
	}
}

// gone is whose an address was when the epoch is over.
var gone = &terminal{}

// consecutive reports whether the blocks of e by winners are one after the other.
func (l *ledger) consecutive(e *epoch, winners []string) bool {
	for from := e.first; from+len(winners) <= e.head+1; from++ {
		same := true
		for i, address := range winners {
			same = same && l.blocks[from+i].Validator == address
		}
		if same {
			return true
		}
	}
	return false
}

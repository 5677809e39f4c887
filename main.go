// Command proofofstake is a proof-of-stake blockchain that people run with nothing but netcat: whoever connects is a
// validator who stakes tokens and types pulses (BPM), and a lottery weighted by stake decides whose block is forged. It
// follows the tutorial "Code your own Proof of Stake blockchain in Go!" function by function; README.md says where it
// differs, and why.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/davecgh/go-spew/spew"
	"github.com/joho/godotenv"

	"proofofstake/internal/console"
	"proofofstake/internal/draw"
	"proofofstake/internal/lineconn"
	"proofofstake/internal/linefile"
)

// ---- Blocks ----

// Block is one entry of the chain: a pulse, and the validator who forged it.
type Block struct {
	Index     int
	Timestamp string // RFC 3339, UTC, with all nine digits of the nanoseconds
	BPM       int
	Hash      string // of all the other fields, see calculateBlockHash
	PrevHash  string
	Validator string
}

// calculateHash is the SHA-256 of s in lower-case hex.
func calculateHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// calculateBlockHash is the hash of everything that block says. Each field ends in a newline, so that no two blocks
// share a record and anyone can repeat it:
//
//	printf '%s\n' "$index" "$timestamp" "$bpm" "$prevhash" "$validator" | sha256sum
func calculateBlockHash(block Block) string {
	return calculateHash(strconv.Itoa(block.Index) + "\n" + block.Timestamp + "\n" + strconv.Itoa(block.BPM) + "\n" +
		block.PrevHash + "\n" + block.Validator + "\n")
}

// timestampLayout is that of Block.Timestamp, for package time.
const timestampLayout = "2006-01-02T15:04:05.000000000Z"

// beforeGenesis stands for the block that the genesis block follows: there is none.
func beforeGenesis() Block { return Block{Index: -1} }

// generateBlock makes the block that follows oldBlock. If the clock was set back, it has the time of oldBlock: it is
// never older.
func generateBlock(oldBlock Block, BPM int, address string) Block {
	newBlock := Block{
		Index:     oldBlock.Index + 1,
		Timestamp: max(oldBlock.Timestamp, time.Now().UTC().Format(timestampLayout)),
		BPM:       BPM,
		PrevHash:  oldBlock.Hash,
		Validator: address,
	}
	newBlock.Hash = calculateBlockHash(newBlock)
	return newBlock
}

// isBlockValid says why newBlock may not follow oldBlock; nil if it may.
func isBlockValid(newBlock, oldBlock Block) error {
	switch {
	case newBlock.Index != oldBlock.Index+1:
		return fmt.Errorf("wrong index: block %d in the place of block %d", newBlock.Index, oldBlock.Index+1)
	case newBlock.PrevHash != oldBlock.Hash:
		return fmt.Errorf("wrong link: block %d does not name the hash of the block before it", newBlock.Index)
	case newBlock.Hash != calculateBlockHash(newBlock):
		return fmt.Errorf("wrong hash: that of block %d is not the hash of its content", newBlock.Index)
	case newBlock.Index == 0 && (newBlock.BPM != 0 || newBlock.Validator != ""):
		return errors.New("wrong genesis: block 0 has a pulse or a validator")
	case newBlock.BPM < 0:
		return fmt.Errorf("wrong BPM: that of block %d is below 0", newBlock.Index)
	case newBlock.Index > 0 && (len(newBlock.Validator) != 64 || strings.Trim(newBlock.Validator, "0123456789abcdef") != ""):
		return fmt.Errorf("wrong validator: that of block %d is no SHA-256", newBlock.Index)
	}
	// time.RFC3339Nano is read much faster than the layout; what else it allows is checked for.
	at := newBlock.Timestamp
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || len(at) != len(timestampLayout) || at[19] != '.' || at[29] != 'Z' {
		return fmt.Errorf("wrong timestamp: that of block %d is not as in %s", newBlock.Index, timestampLayout)
	}
	return nil
}

// blockScanner reads a chain file from genesis on and checks each block against the one before. It is used as a
// bufio.Scanner; head is what Scan has read, and Err names the line.
type blockScanner struct {
	*linefile.Scanner
	head Block // the block last read
	err  error
}

func newBlockScanner(lines *linefile.Scanner) *blockScanner {
	return &blockScanner{Scanner: lines, head: beforeGenesis()}
}

// Scan reads the next block. It returns false at the end and at the first fault.
func (s *blockScanner) Scan() bool {
	if s.err != nil || !s.Scanner.Scan() {
		return false
	}
	block, err := s.follows(s.Bytes())
	if err != nil {
		s.err = fmt.Errorf("line %d: %w", s.Number(), err)
		return false
	}
	s.head = block
	return true
}

// follows reads line as the block that follows the head.
func (s *blockScanner) follows(line []byte) (block Block, err error) {
	if err = linefile.Decode(line, &block); err == nil {
		err = isBlockValid(block, s.head)
	}
	return block, err
}

// Err is the first fault; nil: there was none.
func (s *blockScanner) Err() error { return cmp.Or(s.err, s.Scanner.Err()) }

// ---- The network's state ----

// network is what the validators share. Its goroutine, run, is the lottery: it alone touches what stands below "owned
// by run", so that what happens to the network happens in one order, and every terminal is told of it in that order.
// Candidate blocks reach it over a channel, as in the tutorial, and may have to wait until a block is kept; all else
// that terminals do is a function that run calls at once (see do).
type network struct {
	settings
	console io.Writer   // shows what the tutorial shows; must not make run wait
	log     *log.Logger // warnings and errors; must not make run wait

	candidateBlocks chan candidate
	calls           chan func()
	kept            chan struct{}        // keep is done
	stopped         chan struct{}        // closed when run has returned
	announcements   *lineconn.WriterPool // carry what terminals are told, so that run never waits for one

	// Owned by run.
	head       Block                // the newest block
	newest     *lineconn.Feed       // blocks, as a broadcast shows them
	lastDraw   *lineconn.Notice     // how the head was drawn
	terminals  *lineconn.Group      // all that hear announcements and broadcasts
	validators *console.Roster      // and what the console shows of them
	round      *draw.Draw           // the open round; while a block is being kept, the one that it has won
	proposers  []*terminal          // of its proposals, in order; nil: it has left, or was slashed
	origins    map[netip.Prefix]int // of its proposals
	roundEnds  time.Time
	roundEnd   <-chan time.Time // comes then
	drawn      *drawnBlock      // being kept; nil: a round is open
	patience   <-chan time.Time // while it is not nil, proposals wait for the drawn block; comes after a second
	lateSaid   time.Time        // when the log was last told that a block is late

	// Owned by keep while there is a drawn block, else by run.
	chain, draws *linefile.File
	keeping      sync.WaitGroup
}

// terminal is one connection. A handler reads from it, and looks at the address when run has answered; all else is
// run's.
type terminal struct {
	*lineconn.Conn
	from     netip.Prefix // its network address; zero: not counted
	address  string       // of its validator; empty until it has staked
	stake    int64        // in tokens
	proposal int          // in the round, numbered from 1; 0: none, or it is decided
	ended    bool         // its input has ended: it leaves when its proposal is decided
	tries    int8         // to type a stake
}

// The prompts of a terminal: the questions it is at.
const (
	stakePrompt = "Enter token balance:"
	bpmPrompt   = "\nEnter a new BPM:"
	noPrompt    = "" // its input has ended
)

// goodbye is what every terminal hears last when the server stops.
const goodbye = "\nthe server is shutting down\n"

// candidate is a block that a validator proposes for the next place in the chain.
type candidate struct {
	terminal *terminal
	bpm      int
}

// drawnBlock is a block that was drawn and is not announced yet. Nobody changes it.
type drawnBlock struct {
	Block
	draw.Outcome
	lines string     // of its draw
	next  *draw.Draw // of the round that opens when it is kept
}

// newNetwork goes on with the chain in the chain file, or starts one with a genesis block. It fails if a file is in use
// or cannot be written, if the chain file is not a valid chain, or if ctx is done before that is read.
func newNetwork(ctx context.Context, s settings, stdout io.Writer, logger *log.Logger) (*network, error) {
	n := &network{
		settings: s, console: stdout, log: logger,
		candidateBlocks: make(chan candidate),
		calls:           make(chan func()),
		kept:            make(chan struct{}, 1),
		stopped:         make(chan struct{}),
		announcements:   lineconn.NewWriterPool(runtime.GOMAXPROCS(0)),
		newest:          lineconn.NewFeed("\n[", "]\n", s.broadcastBlocks),
		lastDraw:        lineconn.NewNotice([]byte("\nno block was drawn since the server started\n")),
		terminals:       lineconn.NewGroup(s.broadcastEvery),
		validators:      console.NewRoster(),
		origins:         map[netip.Prefix]int{},
	}
	var err error
	n.chain, err = linefile.Open(s.chainFile)
	if err = about("CHAIN_FILE", s.chainFile, err); err == nil {
		n.draws, err = linefile.Open(s.drawsFile)
		err = about("DRAWS_FILE", s.drawsFile, err)
	}
	if err == nil {
		err = about("CHAIN_FILE", s.chainFile, n.restore(ctx))
	}
	if err == nil && n.draws.PartialSize() > 0 {
		err = about("DRAWS_FILE", s.drawsFile, n.cutDraws())
	}
	if err != nil {
		n.close()
		return nil, err
	}
	n.openRound(draw.New())
	return n, nil
}

// cutDraws cuts off a last line without its end, if this is a draws file.
func (n *network) cutDraws() error {
	if !n.draws.HasPrefix(`{"Index":`) {
		return errors.New("it is no draws file: name another one")
	}
	n.log.Printf(droppingTail, n.drawsFile, n.draws.PartialSize())
	return n.draws.DropPartial()
}

// droppingTail is the warning of what is cut from the end of a file.
const droppingTail = "%s: dropping a last line without its end (%d bytes): it was never announced"

// close gives back what newNetwork took. All terminals must have left.
func (n *network) close() {
	n.keeping.Wait()
	n.announcements.Close()
	n.chain.Close()
	n.draws.Close()
}

// restore takes the chain from the chain file, or puts the genesis block there. On any fault but a last line without
// its end the file stays as it is.
func (n *network) restore(ctx context.Context) error {
	genesis := generateBlock(beforeGenesis(), 0, "")
	blocks := newBlockScanner(n.chain.Scanner(linefile.MaxLine))
	for blocks.Scan() && ctx.Err() == nil {
		if blocks.head.Index == 0 {
			genesis = blocks.head
		}
		n.newest.Add(blocks.Bytes())
	}
	if ctx.Err() != nil {
		return errors.New("stopped before the chain was read")
	}
	err := blocks.Err()
	if tail := blocks.Partial(); err == nil && len(tail) > 0 {
		whole, fault := blocks.follows(tail)
		_, damaged := blocks.follows(tail[:len(tail)-1])
		switch {
		case fault == nil:
			n.log.Printf("%s: the last line has no end, but block %d is whole there: it is kept, and the end added", n.chainFile, whole.Index)
			blocks.head = whole
			n.newest.Add(tail)
			err = n.chain.CompletePartial()
		case damaged == nil: // a whole block and one byte more is no part of a line: it may have been announced
			err = fmt.Errorf("line %d: its newline is damaged", blocks.Number()+1)
		case blocks.Number() == 0 && (bytes.IndexByte(tail, '}') >= 0 || !n.chain.HasPrefix(`{"Index":0,`)):
			err = errors.New("line 1: it has no end, and is no part of a genesis block")
		default:
			n.log.Printf(droppingTail, n.chainFile, len(tail))
			err = n.chain.DropPartial()
		}
	}
	if err != nil {
		return fmt.Errorf("%w: mend the file, or move it away to start a new chain", err)
	}
	n.head = blocks.head
	restored := n.head != beforeGenesis()
	if !restored {
		if err := n.forge(genesis); err != nil {
			return fmt.Errorf("the genesis block: %w", err)
		}
		n.head = genesis
		n.newest.Add(linefile.Encode(genesis))
	}
	spew.Fdump(n.console, genesis)
	if restored {
		fmt.Fprintf(n.console, "restored %d blocks from %s, head %s\n", n.head.Index+1, n.chainFile, n.head.Hash)
	}
	return nil
}

// do has run call f and returns when it has, or false when run is over. It is not inlined, for the sake of the stacks
// of its callers (see handleConn).
//
//go:noinline
func (n *network) do(f func()) bool {
	done := make(chan struct{})
	select {
	case n.calls <- func() { defer close(done); f() }:
		<-done
		return true
	case <-n.stopped:
		return false
	}
}

// The methods from here to the handler run in run's goroutine.

// join takes in a terminal that has connected.
func (n *network) join(t *terminal) {
	n.terminals.Add(t.Conn)
	t.SetPrompt(stakePrompt)
	t.Tell("")
}

// admit makes a validator of t, at a new address.
func (n *network) admit(t *terminal, stake int64) {
	t.address, t.stake = calculateHash(rand.Text()), stake // of 130 random bits
	n.validators.Join(t.address, stake)
	t.SetPrompt(bpmPrompt)
	t.Tell("\nyou are validator %s with %d tokens staked\n%s", t.address, stake, sealLine(n.head.Index+1, n.round))
}

// sealLine tells the seal of the draw of the block with this index.
func sealLine(index int, d *draw.Draw) string {
	return fmt.Sprintf("draw %d seal: %s\n", index, d.Seal())
}

// propose puts c into the open round, unless its validator is in already or the round is full.
func (n *network) propose(c candidate) {
	t, index, left := c.terminal, n.head.Index+1, readable(time.Until(n.roundEnds))
	switch limited := t.from.IsValid() && n.maxPerAddress > 0; {
	case n.drawn != nil:
		t.Tell("%s", n.notKept())
	case t.proposal > 0:
		first := n.round.Entries[t.proposal-1].Note
		t.Tell("\nblock %d is already proposed with BPM %s; the next round opens in %v\n", index, first, left)
	case len(n.proposers) >= n.maxProposals() || limited && n.origins[t.from] >= n.maxPerAddress:
		t.Tell("\nthe round is full; the next one opens in %v\n", left)
	default:
		first, last := n.round.Add(draw.Entry{Name: t.address, Tickets: t.stake, Note: strconv.Itoa(c.bpm)})
		n.proposers = append(n.proposers, t)
		t.proposal = len(n.proposers)
		n.origins[t.from]++
		t.Tell("\nblock %d proposed with BPM %d: tickets %d to %d; the winner is drawn in %v\n", index, c.bpm, first, last, left)
	}
}

// notKept is what who wants to know of the next round hears while there is none.
func (n *network) notKept() string {
	return fmt.Sprintf("\nblock %d is drawn and cannot be kept yet; try again later\n", n.drawn.Index)
}

// answer answers one of the words.
func (n *network) answer(t *terminal, word string) {
	switch {
	case word == "quit":
		t.End("\ngoodbye\n")
	case word == "draw":
		t.Show(n.lastDraw)
	case t.address == "" && word == "":
		t.Tell("")
	case t.address == "": // help
		t.Tell("\nType how many tokens you stake, a whole number from 1 to %d:\n"+
			"the more, the likelier you forge a block. quit: leave.\n", n.maxStake)
	case word != "": // help
		t.Tell("\nType your pulse, a whole number: it proposes a block, one a round.\n" +
			"Enter: how the round stands. draw: how the last block was drawn. quit: leave.\n" +
			"Anything else costs your stake.\n")
	case n.drawn != nil && n.patience == nil:
		t.Tell("%s", n.notKept())
	default:
		proposals, tokens := n.round.Eligible()
		yours := ""
		if t.proposal > 0 {
			yours = fmt.Sprintf(", yours %d (%s)", t.stake, percent(t.stake, tokens))
		}
		t.Tell("\nblock %d: proposals %d, tokens %d%s; the winner is drawn in %v\n",
			n.head.Index+1, proposals, tokens, yours, readable(time.Until(n.roundEnds)))
	}
}

// percent is what part stake is of total.
func percent(stake int64, total *big.Int) string {
	part, _ := new(big.Rat).SetFrac(big.NewInt(stake), total).Float64()
	return fmt.Sprintf("%.1f%%", 100*part)
}

// slash takes the stake of a validator who typed what is no pulse, here quoted: it is off the list, and its proposal in
// the open round cannot win. What is drawn stays as it is.
func (n *network) slash(t *terminal, typed string) {
	if t.proposal > 0 && n.drawn == nil {
		n.round.Slash(t.proposal - 1)
	}
	t.End(fmt.Sprintf("\nslashed: %s is not a pulse (a whole number, 0 or more); %d tokens forfeited\n", typed, t.stake))
	n.validators.Slash(t.address, typed)
	n.leave(t) // it is off the list already
}

// endInput notes that t has nothing more to say: it stays only to hear how its proposal fares.
func (n *network) endInput(t *terminal) {
	t.SetPrompt(noPrompt)
	if t.ended = true; t.proposal == 0 {
		n.leave(t)
	}
}

// leave takes t out of the network; a proposal of it stands. To leave twice is no harm.
func (n *network) leave(t *terminal) {
	t.End("")
	if !n.terminals.Remove(t.Conn) {
		return
	}
	if t.proposal > 0 {
		n.proposers[t.proposal-1] = nil
	}
	if errors.Is(t.Err(), lineconn.ErrStalled) {
		n.validators.Disconnected()
	}
	n.validators.Leave(t.address)
}

// ---- The handler ----

// handleConn is the conversation with one terminal: it is asked for its stake, then for one BPM after the other. It
// comes from a network address, which is zero if that is not counted. Its goroutine waits in ReadLine for most of its life:
// what needs more stack is done elsewhere, since a stack that has grown once stays large.
func (n *network) handleConn(conn net.Conn, from netip.Prefix) {
	t := &terminal{Conn: n.announcements.NewConn(conn), from: from}
	if !n.do(func() { n.join(t) }) {
		turnAway(t.Conn, stakePrompt+goodbye)
		return
	}
	typed, err := t.ReadLine()
	for ; isLine(err) && t.address == ""; typed, err = t.ReadLine() {
		if !n.takeWord(t, typed, err) {
			n.takeStake(t, typed, err)
		}
	}
	for ; isLine(err); typed, err = t.ReadLine() {
		if !n.takeWord(t, typed, err) {
			n.takeBPM(t, typed, err)
		}
	}
	if err == io.EOF {
		n.do(func() { n.endInput(t) })
	}
	t.Close() // waits for End: after the end of the input, until its proposal is decided
	n.do(func() { n.leave(t) })
}

// isLine says whether ReadLine has returned a line, perhaps too long. Else the conversation is over: after End, too.
func isLine(err error) bool { return err == nil || err == lineconn.ErrTooLong }

// takeWord answers t if it typed one of the words, which cost nothing, and reports whether it did.
func (n *network) takeWord(t *terminal, typed string, err error) bool {
	word := strings.ToLower(typed)
	if err != nil || !slices.Contains([]string{"", "help", "?", "draw", "quit"}, word) {
		return false
	}
	n.do(func() { n.answer(t, word) })
	return true
}

// takeStake makes a validator of t, if what it typed is a stake. It may try three times.
func (n *network) takeStake(t *terminal, typed string, err error) {
	stake, err := parseStake(typed, err, n.maxStake)
	if err == nil {
		n.do(func() { n.admit(t, stake) })
		return
	}
	n.do(func() {
		t.Tell("\n%.40q is not a stake: %v\n", typed, err)
		if t.tries++; t.tries == 3 {
			t.End("\ntoo many tries, goodbye\n")
		}
	})
}

// takeBPM proposes a block with the pulse that t typed, or has t slashed if it is none.
func (n *network) takeBPM(t *terminal, typed string, err error) {
	bpm, noNumber := strconv.Atoi(typed)
	if err != nil || noNumber != nil || bpm < 0 {
		n.do(func() { n.slash(t, fmt.Sprintf("%.40q", typed)) })
		return
	}
	select {
	case n.candidateBlocks <- candidate{t, bpm}:
	case <-n.stopped: // as the next Ask will say
	}
}

// parseStake reads a stake of 1 to most tokens; its error says what would be one. An error of the reading comes first.
func parseStake(typed string, err error, most int64) (int64, error) {
	if err != nil {
		return 0, err
	}
	stake, err := strconv.ParseInt(typed, 10, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, errors.New("it must be a whole number, such as 100")
	case stake > most || err != nil && stake > 0:
		return 0, fmt.Errorf("the most is %d", most)
	case stake < 1:
		return 0, errors.New("the least is 1")
	}
	return stake, nil
}

// refuse turns a terminal away for which there is no place.
func (n *network) refuse(conn net.Conn, why error) {
	words := "the server is full, try again later\n"
	if why == lineconn.ErrAddressFull {
		words = "too many terminals from your address, try again later\n"
	}
	turnAway(n.announcements.NewConn(conn), words)
}

// turnAway closes a connection that is not let in, with these words.
func turnAway(c *lineconn.Conn, words string) {
	c.End(words)
	c.Close()
}

// ---- The lottery ----

// run is the lottery: it takes candidate blocks, ends each round with a draw and keeps all that is the network's, until
// ctx is done. Then it draws the open round at once and takes leave of every terminal.
func (n *network) run(ctx context.Context) {
	defer close(n.stopped)
	for {
		candidateBlocks := n.candidateBlocks
		if n.patience != nil {
			candidateBlocks = nil // they wait until the drawn block is kept, for a second at most
		}
		select {
		case c := <-candidateBlocks:
			n.propose(c)
		case f := <-n.calls:
			f()
		case <-n.roundEnd:
			n.pickWinner()
		case <-n.kept:
			n.announce()
		case <-n.patience:
			n.keepLater()
		case <-n.terminals.Due.C:
			n.terminals.Broadcast(n.newest.Snapshot())
		case <-n.validators.Due.C:
			n.validators.Show(n.console, n.log)
		case <-ctx.Done():
			n.stop()
			return
		}
	}
}

// openRound opens the round that d decides. It ends by the clock, roundLength after the one before should have ended;
// or after now, if that is past: in the first round, and when this process stood still. Rounds are not made up for.
func (n *network) openRound(d *draw.Draw) {
	n.round, n.proposers = d, nil
	clear(n.origins)
	n.roundEnds = n.roundEnds.Add(n.roundLength)
	if now := time.Now(); !n.roundEnds.After(now) {
		n.roundEnds = now.Add(n.roundLength)
	}
	n.roundEnd = time.After(time.Until(n.roundEnds))
}

// pickWinner ends the round: a ticket is drawn of all those that were given out, and the block of its holder is kept by
// a goroutine beside the lottery, which never waits for a disk. Until that is done no round is open. Without a proposal
// that can win there is no block, and the seal stays.
func (n *network) pickWinner() {
	lines := n.round.Lines()
	outcome := n.round.Outcome(lines)
	if outcome.Winner < 0 {
		n.openRound(n.round.Again())
		return
	}
	winner := n.round.Entries[outcome.Winner]
	bpm, _ := strconv.Atoi(winner.Note)
	n.drawn = &drawnBlock{generateBlock(n.head, bpm, winner.Name), outcome, lines, draw.New()}
	n.patience = time.After(time.Second)
	n.keeping.Add(1)
	go n.keep(n.drawn)
}

// keep makes durable how d was drawn, and then its block. What was drawn stays: if it cannot be kept, the same block is
// tried again every second, since to draw again would be a second chance for whoever runs the server.
func (n *network) keep(d *drawnBlock) {
	defer n.keeping.Done()
	var said time.Time
	for recorded := n.drawsFile == ""; ; {
		var err error
		if !recorded {
			err = n.keepRecord(draw.NewRecord(d.Index, d.Hash, d.lines, d.Outcome, d.next))
		}
		if err == nil {
			recorded = true
			err = n.forge(d.Block)
		}
		if err == nil {
			break
		}
		if now := time.Now(); now.Sub(said) >= time.Minute {
			n.log.Printf("block %d is drawn and cannot be kept: %v; it is tried again every second", d.Index, err)
			said = now
		}
		select {
		case <-time.After(time.Second):
		case <-n.stopped:
			return
		}
	}
	if !said.IsZero() {
		n.log.Printf("block %d is kept", d.Index)
	}
	n.kept <- struct{}{}
}

// keepRecord makes durable how a block was drawn. The draws file may be moved, packed or deleted at any time: then a
// new one is begun.
func (n *network) keepRecord(record []byte) error {
	changed := n.draws.Append(record)
	if !errors.Is(changed, linefile.ErrChanged) {
		return changed
	}
	if err := n.draws.Reopen(); err != nil {
		return err
	}
	n.log.Printf("%v; the draws go on in the file of that name that is there now", changed)
	return n.draws.Append(record)
}

// forge makes block durable, once it is checked against the head.
func (n *network) forge(block Block) error {
	if err := isBlockValid(block, n.head); err != nil {
		return fmt.Errorf("it does not follow the head: %w", err)
	}
	err := n.chain.Append(linefile.Encode(block))
	if errors.Is(err, linefile.ErrChanged) {
		err = fmt.Errorf("%w: if it was moved, move it back; else restart the server, which checks it", err)
	}
	return err
}

// keepLater notes that the drawn block is not kept in time: who wants to propose is told so, and waits no longer.
func (n *network) keepLater() {
	n.patience = nil
	if now := time.Now(); now.Sub(n.lateSaid) >= time.Minute {
		n.log.Printf("block %d is not kept after a second: until it is, nobody can propose", n.drawn.Index)
		n.lateSaid = now
	}
}

// announce makes the drawn block, which is kept, the head, tells everybody, and opens the next round.
func (n *network) announce() {
	d, round, proposers := n.drawn, n.round, n.proposers
	n.drawn, n.patience = nil, nil
	n.head = d.Block
	n.newest.Add(linefile.Encode(d.Block))
	n.openRound(d.next)

	seal, stake := sealLine(d.Index+1, d.next), round.Entries[d.Winner].Tickets
	fmt.Fprintf(n.console, "block %d: BPM %d, %v, proposals %d, stake %d (%s), forged by\n  %s\n%s",
		d.Index, d.BPM, d.Outcome, len(proposers), stake, percent(stake, d.Total), d.Validator, seal)
	n.lastDraw = lineconn.NewNotice(fmt.Appendf(nil, "\nblock %d: %v; the lines of its draw:\n", d.Index, d.Outcome), []byte(d.lines))
	won := fmt.Sprintf("\nwinning validator: %s\nblock %d, BPM %d: %v, secret %s\n", d.Validator, d.Index, d.BPM, d.Outcome, round.Secret())
	everybody := lineconn.NewNotice([]byte(won + seal))
	if t := proposers[d.Winner]; t != nil {
		n.terminals.Announce(everybody, t.Conn)
		t.Tell("%syou forged block %d\n%s", won, d.Index, seal)
	} else {
		n.terminals.Announce(everybody, nil)
	}
	for _, t := range proposers {
		if t == nil {
			continue
		}
		if t.proposal = 0; t.ended {
			n.leave(t)
		}
	}
}

// stop draws the open round at once, unless a block is being kept: then it is empty. All conversations end.
func (n *network) stop() {
	if n.drawn == nil {
		n.pickWinner()
	}
	if n.drawn != nil {
		select {
		case <-n.kept:
			n.announce()
		case <-time.After(keepLimit):
			n.log.Printf("block %d is not announced: it was not kept in time", n.drawn.Index)
		}
	}
	n.terminals.EndAll(goodbye)
}

// ---- Checking the files ----

// verify checks a chain file and the draws file that goes with it, unless that has no name; also while a server writes
// them. Memory does not grow with the files.
func verify(chainName, drawsName string, stdout, stderr io.Writer) error {
	if chainName == "" {
		return errors.New("CHAIN_FILE is empty, the chain is in memory only: name a file")
	}
	// The draws first: each but the last was announced, so that its block is in the chain that is read.
	draws, err := linefile.OpenSnapshot(cmp.Or(drawsName, os.DevNull))
	if err != nil {
		return err
	}
	defer draws.Close()
	chain, err := linefile.OpenSnapshot(chainName)
	if err != nil {
		return err
	}
	defer chain.Close()
	records := draw.NewRecords(draws)
	blocks := newBlockScanner(linefile.NewScanner(chain, linefile.MaxLine))
	records.Scan()
	for blocks.Scan() {
		b := blocks.head
		records.CheckBlock(b.Index, b.Hash, b.Validator, strconv.Itoa(b.BPM))
	}
	head := blocks.head
	switch err := blocks.Err(); {
	case err != nil:
		return fmt.Errorf("%s: %w", chainName, err)
	case head == beforeGenesis():
		return fmt.Errorf("%s: there is no genesis block", chainName)
	case len(blocks.Partial()) > 0:
		fmt.Fprintf(stderr, "%s: a last line without its end does not count\n", chainName)
	}
	fmt.Fprintf(stdout, "ok: %d blocks, head %s\n", head.Index+1, head.Hash)
	if drawsName == "" {
		return nil
	}
	if err := records.CheckEnd(head.Index); err != nil {
		return fmt.Errorf("%s: %w", drawsName, err)
	}
	fmt.Fprintf(stdout, "ok: %s\n", records.Summary(head.Index))
	return nil
}

// ---- Main ----

// settings is what the environment and .env may change; README.md explains them.
type settings struct {
	addr            string        // host:port to listen on
	roundLength     time.Duration // > 0
	broadcastEvery  time.Duration // > 0
	broadcastBlocks int           // the newest blocks in a broadcast; 0: all
	chainFile       string        // where the chain is kept; empty: in memory only
	drawsFile       string        // where the draws are kept; empty: nowhere
	maxStake        int64         // tokens
	maxClients      int           // terminals at once, and proposals in a round; 0: no limit, and 1,000,000
	maxPerAddress   int           // the same, from one network address; 0: no limit
}

// maxProposals is how many proposals a round may have.
func (s settings) maxProposals() int { return min(cmp.Or(s.maxClients, 1_000_000), 1_000_000) }

// setting returns the value of an environment variable, or missing if it is not set. An empty value is a value.
func setting(name, missing string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return missing
}

// loadSettings reads the settings from the environment. Its error names the variable, the value and what would be
// right.
func loadSettings() (s settings, err error) {
	check := func(right bool, name, value, want string) {
		if !right && err == nil {
			err = fmt.Errorf("%s=%q is not right: want %s", name, value, want)
		}
	}
	duration := func(name, missing string) time.Duration {
		value := setting(name, missing)
		d, fault := time.ParseDuration(value)
		check(fault == nil && d > 0, name, value, "a duration above 0, such as "+missing)
		return d
	}
	number := func(name, missing string, least, most int64, want string) int64 {
		value := setting(name, missing)
		i, fault := strconv.ParseInt(value, 10, 64)
		check(fault == nil && least <= i && i <= most, name, value, want)
		return i
	}
	addr := setting("ADDR", "9000")
	if s.addr = addr; !strings.Contains(addr, ":") {
		s.addr = ":" + addr
	}
	_, port, _ := net.SplitHostPort(s.addr) // "" if there is none, which is no number
	_, fault := strconv.ParseUint(port, 10, 16)
	check(fault == nil, "ADDR", addr, "a port, such as 9000, or host:port, such as 127.0.0.1:9000")
	s.roundLength = duration("ROUND", "30s")
	s.broadcastEvery = duration("BROADCAST", "1m")
	s.broadcastBlocks = int(number("BROADCAST_BLOCKS", "10", 0, 1<<30, "a number of blocks, or 0 for the whole chain"))
	if s.chainFile = setting("CHAIN_FILE", "chain.jsonl"); s.chainFile != "" {
		s.drawsFile = setting("DRAWS_FILE", "draws.jsonl")
	}
	s.maxStake = number("MAX_STAKE", "9223372036854775807", 1, math.MaxInt64, "a number of tokens from 1 on, such as 1000")
	s.maxClients = int(number("MAX_CLIENTS", "10000", 0, 1<<30, "a number of terminals, or 0 for as many as the system allows"))
	s.maxPerAddress = int(number("MAX_PER_ADDRESS", "1000", 0, 1<<30, "a number of terminals, or 0 for no limit"))
	return s, err
}

// about says which setting err is about; nil stays nil.
func about(name, value string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s=%q: %w", name, value, err)
}

// readable rounds d to whole seconds, or below one second to milliseconds; a negative one is 0.
func readable(d time.Duration) time.Duration {
	if d < time.Second {
		return max(d, 0).Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

const usage = `usage: proofofstake                          run a server
       proofofstake verify [CHAIN [DRAWS]]   check the chain file and how its blocks were drawn
       proofofstake fairness [DRAWS]         show whether wins follow stakes`

func main() {
	err := godotenv.Load()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	args := os.Args[1:]
	switch {
	case err != nil:
		err = fmt.Errorf(".env: %w", err)
	case len(args) == 0:
		var s settings
		if s, err = loadSettings(); err == nil {
			err = start(s)
		}
	case args[0] == "verify" && len(args) <= 3:
		chain, draws := setting("CHAIN_FILE", "chain.jsonl"), setting("DRAWS_FILE", "draws.jsonl")
		switch _, missing := os.Stat(draws); {
		case len(args) == 3:
			chain, draws = args[1], args[2]
		case len(args) == 2 && args[1] != chain:
			chain, draws = args[1], ""
			fmt.Fprintln(os.Stderr, "the draws are not checked: name their file as well")
		case draws == "": // they are not kept
		case errors.Is(missing, fs.ErrNotExist):
			draws = os.DevNull // it may be moved or deleted at any time
		}
		err = verify(chain, draws, os.Stdout, os.Stderr)
	case args[0] == "fairness" && len(args) <= 2:
		name := setting("DRAWS_FILE", "draws.jsonl")
		if len(args) == 2 {
			name = args[1]
		}
		err = draw.Fairness(os.Stdout, name)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start runs a server until Ctrl-C, SIGTERM, or SIGHUP, which the closing of a window sends, unless that is ignored
// (nohup).
func start(s settings) error {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}
	if signal.Ignored(syscall.SIGHUP) {
		signals = signals[:2]
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop)   // a second Ctrl-C ends the process at once
	signal.Ignore(syscall.SIGPIPE) // nobody has to look at the console
	_, _ = time.Now().Zone()       // reads the time zone for the log while there are files to be opened
	stdout, stderr := console.New(os.Stdout), console.New(os.Stderr)
	defer stdout.Close(consoleLimit)
	defer stderr.Close(consoleLimit)
	ln, err := lineconn.Listen(s.addr)
	if err != nil {
		return fmt.Errorf("ADDR=%q: %w; want a free port of this machine", s.addr, err)
	}
	n, err := newNetwork(ctx, s, stdout, log.New(stderr, "", log.LstdFlags))
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%slistening on %s\n", sealLine(n.head.Index+1, n.round), ln.Addr())
	n.serve(ctx, ln)
	return nil
}

// How long the end may take, less than 5 s in all.
const (
	keepLimit    = 2 * time.Second        // for the last block
	goodbyeLimit = 4 * time.Second        // for that and the last words to terminals
	consoleLimit = 200 * time.Millisecond // then, for what each of the two outputs has not taken
)

// serve plays with the terminals that connect to ln until ctx is done and every terminal has left, or goodbyeLimit
// later.
func (n *network) serve(ctx context.Context, ln lineconn.Listener) {
	go n.run(ctx)
	server := &lineconn.Server{Handle: n.handleConn, Refuse: n.refuse, MaxConns: n.maxClients, MaxPerAddress: n.maxPerAddress, Log: n.log}
	server.Serve(ctx, ln)
	limit := time.After(goodbyeLimit)
	left := make(chan struct{})
	go func() {
		<-n.stopped
		server.Wait()
		n.close()
		close(left)
	}()
	select {
	case <-left:
	case <-limit:
	}
}

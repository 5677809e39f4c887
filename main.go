// Command proofofstake is a proof-of-stake blockchain that people run with
// nothing but netcat: whoever connects is a validator who stakes tokens and types
// pulses (BPM), and a lottery weighted by stake decides whose block is forged.
// It follows the tutorial "Code your own Proof of Stake blockchain in Go!"
// function by function; README.md says where it differs, and why.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"math"
	"math/big"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/davecgh/go-spew/spew"
	"github.com/joho/godotenv"

	"proofofstake/internal/accept"
	"proofofstake/internal/console"
	"proofofstake/internal/env"
	"proofofstake/internal/flatjson"
	"proofofstake/internal/human"
	"proofofstake/internal/lineconn"
	"proofofstake/internal/linefile"
	"proofofstake/internal/recent"
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

// calculateBlockHash is the hash of everything that block says. Each field ends
// in a newline, so that no two blocks share a record and anyone can repeat it:
//
//	printf '%s\n' "$index" "$timestamp" "$bpm" "$prevhash" "$validator" | sha256sum
func calculateBlockHash(block Block) string {
	return calculateHash(strconv.Itoa(block.Index) + "\n" + block.Timestamp + "\n" + strconv.Itoa(block.BPM) + "\n" +
		block.PrevHash + "\n" + block.Validator + "\n")
}

// beforeGenesis stands for the block that the genesis block follows: there is none.
func beforeGenesis() Block { return Block{Index: -1} }

// generateBlock makes the block that follows oldBlock.
func generateBlock(oldBlock Block, BPM int, address string) Block {
	newBlock := Block{
		Index:     oldBlock.Index + 1,
		Timestamp: time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z"),
		BPM:       BPM,
		PrevHash:  oldBlock.Hash,
		Validator: address,
	}
	newBlock.Hash = calculateBlockHash(newBlock)
	return newBlock
}

// isBlockValid reports whether newBlock may follow oldBlock.
func isBlockValid(newBlock, oldBlock Block) bool { return blockFault(newBlock, oldBlock) == nil }

// blockFault says why newBlock may not follow oldBlock; nil if it may.
func blockFault(newBlock, oldBlock Block) error {
	switch {
	case newBlock.Index != oldBlock.Index+1:
		return fmt.Errorf("wrong index: block %d in the place of block %d", newBlock.Index, oldBlock.Index+1)
	case newBlock.PrevHash != oldBlock.Hash:
		return fmt.Errorf("wrong link: block %d does not name the hash of the block before it", newBlock.Index)
	case newBlock.Hash != calculateBlockHash(newBlock):
		return fmt.Errorf("wrong hash: that of block %d is not the hash of its content", newBlock.Index)
	case newBlock.Index == 0 && (newBlock.BPM != 0 || newBlock.Validator != ""):
		return errors.New("wrong genesis: block 0 has a pulse or a validator")
	}
	return nil
}

// parseBlock reads a block in the one spelling that it has in broadcasts and in the
// chain file, which is that of encoding/json.
func parseBlock(line []byte) (Block, error) {
	r := flatjson.New(line)
	block := Block{
		Index:     r.Int(`{"Index":`),
		Timestamp: r.String(`,"Timestamp":`),
		BPM:       r.Int(`,"BPM":`),
		Hash:      r.String(`,"Hash":`),
		PrevHash:  r.String(`,"PrevHash":`),
		Validator: r.String(`,"Validator":`),
	}
	return block, r.End("}")
}

// readChain verifies a chain file from genesis on, as read hands its lines over,
// and calls add with each block and its line. It returns the head and the tail:
// a part of a line at the end, which was never announced. Its error is the first fault.
func readChain(read func(func(line []byte) error) (tail []byte, err error), add func(Block, []byte)) (head Block, tail []byte, err error) {
	head = beforeGenesis()
	next := func(line []byte) error {
		block, err := parseBlock(line)
		if err == nil {
			err = blockFault(block, head)
		}
		if err == nil {
			head = block
			add(block, line)
		}
		return err
	}
	tail, err = read(next)
	// A whole block and one byte more is no part of a line: it may have been announced.
	if err == nil && len(tail) > 0 && next(tail[:len(tail)-1]) == nil {
		err = fmt.Errorf("line %d: its newline is damaged", head.Index+1)
	}
	return head, tail, err
}

// ---- The network's state ----

// network is what the validators share. Its goroutine, run, is the lottery: it
// alone touches what stands below "owned by run", so that what happens to the
// network happens in one order, and every terminal is told of it in that order.
// Others hand it candidate blocks, or functions to run (see do).
type network struct {
	settings
	console io.Writer   // shows what the tutorial shows; must not make run wait
	log     *log.Logger // warnings and errors

	candidateBlocks chan *candidate
	calls           chan func()
	stopped         chan struct{}     // closed when run has returned
	announcements   *lineconn.Writers // carry what terminals are told, so that run never waits for one

	// Owned by run.
	head        Block            // the newest block
	chain       *recent.Values   // the newest blocks, encoded: what a broadcast shows
	file        *linefile.File   // keeps every block
	unkept      bool             // the last block could not be kept, and the console has said so
	terminals   *lineconn.Group  // all that hear announcements and broadcasts
	validators  map[string]int64 // the stake of each address, in tokens
	staked      *big.Int         // their sum
	proposals   []*candidate     // of the open round, one for each proposer
	roundEnds   time.Time
	news        news
	reported    time.Time   // when the console was last shown the news
	reportTimer *time.Timer // rings when there is a report to be made
}

// terminal is one connection. A handler reads from it; the rest is run's, and the handler
// looks at it only while run does nothing with it, since it waits for each answer.
type terminal struct {
	*lineconn.Conn
	address  string     // of its validator; empty until it has staked
	stake    int64      // in tokens
	proposal *candidate // in the open round; nil: none
	ended    bool       // its input has ended: it leaves when its proposal is decided
	tries    int        // to type a stake; owned by the handler
}

// The prompts of a terminal: the questions it is at.
const (
	stakePrompt = "Enter token balance:"
	bpmPrompt   = "\nEnter a new BPM:"
	noPrompt    = "" // its input has ended
)

// goodbye is what every terminal hears last when the server stops.
const goodbye = "\nthe server is shutting down\n"

// candidate is a block that its validator proposes for the open round.
type candidate struct {
	Block    // BPM and validator; run adds the rest
	stake    int64
	terminal *terminal     // nil: it has left
	answered chan struct{} // closed when the terminal has been answered
}

// newNetwork goes on with the chain in the chain file, or starts one with a
// genesis block. It fails if the file is not a valid chain, is in use or
// cannot be written. The caller must call run.
func newNetwork(s settings, console io.Writer, logger *log.Logger) (*network, error) {
	file, err := linefile.Open(s.chainFile)
	if err != nil {
		return nil, err
	}
	n := &network{
		settings: s, console: console, log: logger, file: file,
		candidateBlocks: make(chan *candidate),
		calls:           make(chan func()),
		stopped:         make(chan struct{}),
		chain:           recent.New(s.broadcastBlocks, "\n["),
		validators:      map[string]int64{},
		staked:          new(big.Int),
	}
	if err := n.restore(); err != nil {
		file.Close()
		return nil, err
	}
	n.announcements = lineconn.NewWriters(runtime.GOMAXPROCS(0))
	return n, nil
}

// close gives back what newNetwork took. All terminals must have left.
func (n *network) close() {
	n.announcements.Close()
	n.file.Close()
}

// restore takes the chain from the chain file, or puts the genesis block there. A
// last line without its end is dropped; on any other fault the file stays as it is.
func (n *network) restore() error {
	var genesis Block
	head, tail, err := readChain(n.file.Replay, func(block Block, line []byte) {
		if block.Index == 0 {
			genesis = block
		}
		n.chain.Add(line)
	})
	if err != nil {
		return fmt.Errorf("%w; the file is untouched: mend it, or move it away to start a new chain", err)
	}
	if len(tail) > 0 {
		n.log.Printf("%s: dropping a last line without its end (%d bytes): it was never announced", n.chainFile, len(tail))
	}
	if err := n.file.Cut(); err != nil {
		return err
	}
	if n.head = head; head == beforeGenesis() {
		genesis = generateBlock(head, 0, "")
		if err := n.forge(genesis); err != nil {
			return fmt.Errorf("the genesis block: %w", err)
		}
	}
	spew.Fdump(n.console, genesis)
	if head != beforeGenesis() {
		fmt.Fprintf(n.console, "restored %d blocks from %s, head %s\n", n.head.Index+1, n.chainFile, n.head.Hash)
	}
	return nil
}

// do has run call f and returns when it has, or false when run is over. It is not inlined,
// for the sake of the stacks of its callers (see handleConn).
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

// enter takes in a terminal that has connected.
func (n *network) enter(t *terminal) {
	n.terminals.Add(t.Conn)
	t.SetPrompt(stakePrompt)
	t.Tell("")
}

// admit makes a validator of t, at a new address.
func (n *network) admit(t *terminal, stake int64) {
	t.address, t.stake = calculateHash(rand.Text()), stake // of 130 random bits
	n.validators[t.address] = stake
	n.staked.Add(n.staked, big.NewInt(stake))
	t.SetPrompt(bpmPrompt)
	t.Tell("\nyou are validator %s with %d tokens staked\n", t.address, stake)
	n.expectReport()
	n.news.joined = t.address
}

// propose puts c into the open round, unless its validator is in already.
func (n *network) propose(c *candidate) {
	defer close(c.answered)
	t := c.terminal
	left := human.Duration(time.Until(n.roundEnds))
	if first := t.proposal; first != nil {
		t.Tell("\nblock %d is already proposed with BPM %d; the next round opens in %v\n", first.Index, first.BPM, left)
		return
	}
	c.Block = generateBlock(n.head, c.BPM, c.Validator)
	n.proposals = append(n.proposals, c)
	t.proposal = c
	t.Tell("\nblock %d proposed with BPM %d; the winner is drawn in %v\n", c.Index, c.BPM, left)
}

// slash takes the stake of a validator who typed what is no pulse: it is off
// the list, and its proposal in the open round is void.
func (n *network) slash(t *terminal, typed string) {
	if void := t.proposal; void != nil {
		n.proposals = slices.DeleteFunc(n.proposals, func(c *candidate) bool { return c == void })
	}
	n.sendAway(t, fmt.Sprintf("\nslashed: %s is not a pulse; %d tokens forfeited\n", human.Quote(typed, quoted), t.stake))
}

// sendAway has t leave with these last words.
func (n *network) sendAway(t *terminal, words string) {
	t.Send(lineconn.Text(words))
	n.leave(t)
}

// endInput notes that t has nothing more to say: it stays only to hear how its
// proposal fares.
func (n *network) endInput(t *terminal) {
	t.SetPrompt(noPrompt)
	t.ended = true
	if t.proposal == nil {
		n.leave(t)
	}
}

// leave takes t out of the network; a proposal of it stands. What was sent to
// it is its end. To leave twice is no harm.
func (n *network) leave(t *terminal) {
	t.Finish()
	if !n.terminals.Remove(t.Conn) {
		return
	}
	if t.address != "" {
		delete(n.validators, t.address)
		n.staked.Sub(n.staked, big.NewInt(t.stake))
	}
	if t.proposal != nil {
		t.proposal.terminal = nil
	}
	if errors.Is(t.Err(), lineconn.ErrNotReading) {
		n.expectReport()
		n.news.cutOff++
	}
}

// news is what the console has not shown yet.
type news struct {
	joined string // the newest validator; empty: none
	cutOff int    // terminals that did not read
}

// expectReport sees to it that the console shows the news: at most one report a
// second, however fast terminals come and go.
func (n *network) expectReport() {
	if n.news == (news{}) {
		n.reportTimer.Reset(time.Until(n.reported.Add(time.Second)))
	}
}

// report shows the news on the console.
func (n *network) report() {
	if n.news.cutOff > 0 {
		n.log.Printf("%d terminals cut off: they did not read", n.news.cutOff)
	}
	if joined := n.news.joined; joined != "" {
		fmt.Fprintf(n.console, "validators: %d with %d tokens staked\n", len(n.validators), n.staked)
		shown := []string{joined}
		if len(n.validators) <= 20 {
			shown = slices.Sorted(maps.Keys(n.validators))
		}
		for _, address := range shown {
			if stake, there := n.validators[address]; there { // it may have left since
				fmt.Fprintf(n.console, "  %s %d\n", address, stake)
			}
		}
	}
	n.news, n.reported = news{}, time.Now()
}

// ---- The handler ----

// quoted is how many characters of a bad input its sender gets to see.
const quoted = 40

// A step deals with a line that t typed, or with lineconn.ErrTooLong, and returns
// what deals with the next one; nil: the conversation is over.
type step func(t *terminal, typed string, err error) step

// handleConn is the conversation with one terminal, from its stake to its end.
// Most of the time its goroutine waits in Ask: it does what needs more stack in steps
// and in run, since a stack that has grown once stays large.
func (n *network) handleConn(conn net.Conn) {
	t := &terminal{Conn: n.announcements.Conn(conn)}
	if !n.do(func() { n.enter(t) }) {
		n.farewell(t.Conn, stakePrompt+goodbye)
		return
	}
	leave := n.leave
	for next := step(n.takeStake); next != nil; {
		typed, err := t.Ask()
		if err == io.EOF {
			leave = n.endInput
			break
		}
		if err != nil && err != lineconn.ErrTooLong {
			break
		}
		next = next(t, typed, err)
	}
	n.do(func() { leave(t) })
	t.Hangup()
	n.do(func() { n.leave(t) })
}

// takeStake makes t a validator, if what it typed is a stake; it may try three times.
func (n *network) takeStake(t *terminal, typed string, err error) step {
	var stake int64
	if err == nil {
		stake, err = parseStake(typed)
	}
	if err != nil {
		return n.refuseStake(t, typed, err)
	}
	n.do(func() { n.admit(t, stake) })
	return n.takeBPM
}

// refuseStake tells t why what it typed is no stake.
func (n *network) refuseStake(t *terminal, typed string, err error) step {
	t.Tell("\n%s is not a stake: %v\n", human.Quote(typed, quoted), err)
	if t.tries++; t.tries < 3 {
		return n.takeStake
	}
	n.do(func() { n.sendAway(t, "\ntoo many tries, goodbye\n") })
	return nil
}

// takeBPM proposes a candidate block with the pulse that t typed, or has t
// slashed if it is none.
func (n *network) takeBPM(t *terminal, typed string, err error) step {
	bpm, parseErr := strconv.Atoi(typed)
	if err != nil || parseErr != nil || bpm < 0 {
		n.do(func() { n.slash(t, typed) })
		return nil
	}
	c := &candidate{Block: Block{BPM: bpm, Validator: t.address}, stake: t.stake, terminal: t, answered: make(chan struct{})}
	select {
	case n.candidateBlocks <- c:
		<-c.answered
		return n.takeBPM
	case <-n.stopped:
		return nil
	}
}

// parseStake reads a stake in tokens; its error says what would be one.
func parseStake(typed string) (int64, error) {
	stake, err := strconv.ParseInt(typed, 10, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, errors.New("it must be a whole number, such as 100")
	case err != nil && stake > 0:
		return 0, fmt.Errorf("the most is %d", int64(math.MaxInt64))
	case stake < 1:
		return 0, errors.New("the least is 1")
	}
	return stake, nil
}

// refuse takes leave of a terminal for which there is no room.
func (n *network) refuse(conn net.Conn) {
	n.farewell(n.announcements.Conn(conn), "the server is full, try again later\n")
}

// farewell has a terminal that was never let in hear words, and nothing else.
func (n *network) farewell(c *lineconn.Conn, words string) {
	c.Send(lineconn.Text(words))
	c.Finish()
	c.Hangup()
}

// ---- The lottery ----

// run is the lottery: it takes candidate blocks, ends each round with a draw
// and keeps all that is the network's, until ctx is done. Then it draws the
// open round at once and takes leave of every terminal.
func (n *network) run(ctx context.Context) {
	defer close(n.stopped)
	n.terminals = lineconn.NewGroup(n.broadcastEvery)
	n.reportTimer = time.NewTimer(time.Hour)
	n.reportTimer.Stop() // until there is news
	n.roundEnds = time.Now().Add(n.roundLength)
	round := time.NewTimer(n.roundLength)
	for {
		select {
		case c := <-n.candidateBlocks:
			n.propose(c)
		case f := <-n.calls:
			f()
		case <-round.C:
			// The next one ends by the clock, unless that is past.
			n.roundEnds = n.roundEnds.Add(n.roundLength)
			n.pickWinner()
			if now := time.Now(); n.roundEnds.Before(now) {
				n.roundEnds = now.Add(n.roundLength)
			}
			round.Reset(time.Until(n.roundEnds))
		case <-n.terminals.Due.C:
			n.terminals.Broadcast(n.chain.Newest(), []byte("]\n"))
		case <-n.reportTimer.C:
			n.report()
		case <-ctx.Done():
			n.pickWinner()
			n.terminals.Dismiss(goodbye)
			return
		}
	}
}

// pickWinner ends the round: one ticket is drawn evenly from all the tokens
// behind its proposals, and the block of its holder is checked, kept and announced.
// Without a proposal it does nothing. If the block cannot be kept, the
// proposals stay for the next draw.
func (n *network) pickWinner() {
	if len(n.proposals) == 0 {
		return
	}
	stakes := make([]int64, len(n.proposals))
	for i, c := range n.proposals {
		stakes[i] = c.stake
	}
	totals := runningTotals(stakes)
	total := totals[len(totals)-1]
	ticket := drawTicket(total)
	winner := n.proposals[ticketHolder(totals, ticket)]
	if err := n.forge(winner.Block); err != nil {
		if !n.unkept {
			n.unkept = true
			n.log.Printf("block %d is not forged: %v; its proposals stay for the next draw", winner.Index, err)
		}
		return
	}
	if n.unkept {
		n.unkept = false
		n.log.Printf("block %d is forged: blocks can be kept again", winner.Index)
	}
	share, _ := new(big.Rat).SetFrac(big.NewInt(winner.stake), total).Float64()
	fmt.Fprintf(n.console, "block %d forged by %s: ticket %d of %d from %d proposals, stake %d (%.1f%%)\n",
		winner.Index, winner.Validator, ticket, total, len(stakes), winner.stake, 100*share)

	announcement := "\nwinning validator: " + winner.Validator + "\n"
	if t := winner.terminal; t != nil {
		n.terminals.Announce(announcement, t.Conn)
		t.Tell("%syou forged block %d\n", announcement, winner.Index)
	} else {
		n.terminals.Announce(announcement, nil)
	}
	decided := n.proposals
	n.proposals = nil
	for _, c := range decided {
		if t := c.terminal; t != nil {
			t.proposal = nil
			if t.ended {
				n.leave(t)
			}
		}
	}
}

// runningTotals returns the sum of the first stake, of the first two, and so on to
// the sum of them all. The sums may pass 64 bits.
func runningTotals(stakes []int64) []*big.Int {
	totals := make([]*big.Int, len(stakes))
	total := new(big.Int)
	for i, stake := range stakes {
		total = new(big.Int).Add(total, big.NewInt(stake))
		totals[i] = total
	}
	return totals
}

// drawTicket draws one of the tickets 1 to total, each as likely as any other and
// known to nobody before. total must be above 0.
func drawTicket(total *big.Int) *big.Int {
	ticket, err := rand.Int(rand.Reader, total) // even: no modulo bias
	if err != nil {
		panic(err) // cannot be: rand.Reader never fails
	}
	return ticket.Add(ticket, big.NewInt(1))
}

// ticketHolder returns the index of the proposer whose ticket it is, one of 1 to the
// last of the running totals: the first proposer holds as many tickets as it has
// staked tokens, from 1 on, the second the next ones, and so on.
func ticketHolder(totals []*big.Int, ticket *big.Int) int {
	i, _ := slices.BinarySearchFunc(totals, ticket, (*big.Int).Cmp)
	return i
}

// forge makes block the new head: once it is checked against the old one, encoded,
// here and nowhere else, and durable.
func (n *network) forge(block Block) error {
	if !isBlockValid(block, n.head) {
		return fmt.Errorf("it does not follow the head: %w", blockFault(block, n.head))
	}
	line, err := json.Marshal(block)
	if err == nil {
		err = n.file.Append(line)
	}
	if err != nil {
		return fmt.Errorf("cannot keep it: %w", err)
	}
	n.head = block
	n.chain.Add(line)
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
	maxClients      int           // terminals at once; 0: no limit
}

// loadSettings reads the settings with lookup, such as os.LookupEnv. Its error names
// the variable, the value and what would be right.
func loadSettings(lookup func(name string) (value string, ok bool)) (settings, error) {
	r := env.New(lookup)
	s := settings{
		addr:            r.Address("ADDR", "9000"),
		roundLength:     r.Duration("ROUND", "30s"),
		broadcastEvery:  r.Duration("BROADCAST", "1m"),
		broadcastBlocks: r.Count("BROADCAST_BLOCKS", "1000", "a number of blocks, or 0 for the whole chain"),
		chainFile:       r.String("CHAIN_FILE", "chain.jsonl"),
		maxClients:      r.Count("MAX_CLIENTS", "10000", "a number of terminals, or 0 for as many as the system allows"),
	}
	return s, r.Err()
}

const usage = `usage: proofofstake                run a server
       proofofstake verify [FILE]  check a chain file`

func main() {
	args := os.Args[1:]
	verifies := len(args) > 0 && args[0] == "verify"
	if len(args) > 2 || len(args) > 0 && !verifies {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	s, err := readSettings()
	if verifies {
		name := append(args[1:], s.chainFile)[0] // FILE, or else the setting; others do not matter
		err = verify(name, os.Stdout, os.Stderr)
	} else if err == nil {
		err = start(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// readSettings reads the settings from the environment and from .env, if there is one.
func readSettings() (settings, error) {
	if err := godotenv.Load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return settings{}, fmt.Errorf(".env: %w", err)
	}
	return loadSettings(os.LookupEnv)
}

// verify checks the chain file name, also while a server is writing it.
func verify(name string, stdout, stderr io.Writer) error {
	if name == "" {
		return errors.New("CHAIN_FILE is empty, the chain is in memory only: name a file")
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	read := func(fn func([]byte) error) ([]byte, error) { return linefile.Read(file, fn) }
	head, tail, err := readChain(read, func(Block, []byte) {})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(tail) > 0 {
		fmt.Fprintf(stderr, "%s: a last line without its end does not count: it was never announced\n", name)
	}
	if head == beforeGenesis() {
		return fmt.Errorf("%s: there is no genesis block", name)
	}
	fmt.Fprintf(stdout, "ok: %d blocks, head %s\n", head.Index+1, head.Hash)
	return nil
}

// start runs a server until Ctrl-C, SIGTERM, or SIGHUP, which the closing of a window sends.
func start(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)   // a second Ctrl-C ends the process at once
	signal.Ignore(syscall.SIGPIPE) // nobody has to look at the console
	stdout, stderr := console.New(os.Stdout), console.New(os.Stderr)
	defer stdout.Close(consoleLimit)
	defer stderr.Close(consoleLimit)
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("ADDR=%q: %w; want a free port of this machine", s.addr, err)
	}
	n, err := newNetwork(s, stdout, log.New(stderr, "", log.LstdFlags))
	if err != nil {
		return fmt.Errorf("CHAIN_FILE=%q: %w", s.chainFile, err)
	}
	fmt.Fprintf(stdout, "listening on %s\n", ln.Addr())
	n.serve(ctx, ln.(*net.TCPListener))
	return nil
}

// The end takes as long as these at most: the last draw and the last words to
// terminals, then what the console has not taken.
const (
	goodbyeLimit = 4 * time.Second
	consoleLimit = 200 * time.Millisecond
)

// serve plays with the terminals that connect to ln until ctx is done and
// every terminal has left, or goodbyeLimit later.
func (n *network) serve(ctx context.Context, ln accept.Listener) {
	go n.run(ctx)
	server := &accept.Server{Handle: n.handleConn, Refuse: n.refuse, Max: n.maxClients, Log: n.log}
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

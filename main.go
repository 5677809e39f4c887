// Command proofofstake is a proof-of-stake blockchain that people run with
// nothing but netcat: each terminal that connects is a validator who stakes
// tokens and types pulses (BPM), and a lottery weighted by stake decides whose
// block is forged. It follows the tutorial "Code your own Proof of Stake
// blockchain in Go!" function by function; README.md says where it differs, and why.
package main

import (
	"container/list"
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
	"strings"
	"syscall"
	"time"

	"github.com/davecgh/go-spew/spew"
	"github.com/joho/godotenv"

	"proofofstake/internal/accept"
	"proofofstake/internal/env"
	"proofofstake/internal/human"
	"proofofstake/internal/lineconn"
	"proofofstake/internal/recent"
)

// ---- Blocks ----

// Block is one entry of the chain: a pulse, and the validator who forged it.
type Block struct {
	Index     int
	Timestamp string // RFC 3339, UTC, with nanoseconds
	BPM       int
	Hash      string // of all the other fields, see calculateBlockHash
	PrevHash  string
	Validator string
}

// timestampFormat is RFC 3339 with all nine digits of the nanoseconds.
const timestampFormat = "2006-01-02T15:04:05.000000000Z07:00"

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

// generateGenesis makes the first block of a new chain.
func generateGenesis() Block {
	genesis := Block{Timestamp: time.Now().UTC().Format(timestampFormat)}
	genesis.Hash = calculateBlockHash(genesis)
	return genesis
}

// generateBlock makes the block that follows oldBlock.
func generateBlock(oldBlock Block, BPM int, address string) Block {
	newBlock := Block{
		Index:     oldBlock.Index + 1,
		Timestamp: time.Now().UTC().Format(timestampFormat),
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
		return fmt.Errorf("wrong index %d after block %d", newBlock.Index, oldBlock.Index)
	case newBlock.PrevHash != oldBlock.Hash:
		return fmt.Errorf("wrong link: block %d does not name the hash of the block before it", newBlock.Index)
	case newBlock.Hash != calculateBlockHash(newBlock):
		return fmt.Errorf("wrong hash: that of block %d is not the hash of its content", newBlock.Index)
	}
	return nil
}

// genesisFault says why block cannot be the first of a chain; nil if it can.
func genesisFault(block Block) error {
	switch {
	case block.Index != 0:
		return fmt.Errorf("wrong index %d of the first block", block.Index)
	case block.PrevHash != "":
		return errors.New("wrong link: the genesis block names a block before it")
	case block.BPM != 0 || block.Validator != "":
		return errors.New("the genesis block has a pulse or a validator")
	case block.Hash != calculateBlockHash(block):
		return errors.New("wrong hash: that of the genesis block is not the hash of its content")
	}
	return nil
}

// ---- The network's state ----

// network is what the validators share. Its goroutine, run, is the lottery: it alone
// touches what stands below "owned by run", so that what happens to the
// network happens in one order, and every terminal is told of it in that order.
// Others hand it candidate blocks, or functions to run (see do).
type network struct {
	settings
	console io.Writer   // shows what the tutorial shows
	log     *log.Logger // warnings and errors

	candidateBlocks chan *candidate
	calls           chan func()
	stopped         chan struct{}     // closed when run has returned
	announcements   *lineconn.Writers // carry what terminals are told, so that run never waits for one

	// Owned by run.
	head           Block            // the newest block
	chain          *recent.Values   // the newest blocks, encoded: what a broadcast shows
	terminals      *list.List       // of *terminal; in front the one whose broadcast is due next
	validators     map[string]int64 // the stake of each address, in tokens
	staked         *big.Int         // their sum
	proposals      []*candidate     // of the open round, one for each proposer
	roundEnds      time.Time
	roundTimer     *time.Timer // rings at roundEnds
	broadcastTimer *time.Timer // rings when the front terminal's broadcast is due
	news           news
}

// terminal is one connection. Its handler reads from it; the rest is owned by run.
type terminal struct {
	*lineconn.Conn
	address     string // of its validator; empty until it has staked
	stake       int64  // in tokens
	prompt      prompt
	proposal    *candidate    // in the open round; nil: none
	ended       bool          // its input has ended: it leaves when its proposal is decided
	broadcastAt time.Time     // when its next broadcast is due
	place       *list.Element // in terminals; nil: not there
}

// candidate is a block that its validator proposes for the open round.
type candidate struct {
	Block    // BPM and validator; run adds the rest
	stake    int64
	terminal *terminal
	answered chan struct{} // closed when the terminal has been answered
}

// prompt is the question that a terminal is at.
type prompt int

const (
	noPrompt prompt = iota // its input has ended
	stakePrompt
	bpmPrompt
	prompts // how many there are
)

// String is the prompt as it is sent.
func (p prompt) String() string {
	return [prompts]string{stakePrompt: "Enter token balance:", bpmPrompt: "\nEnter a new BPM:"}[p]
}

// newNetwork starts a chain with a genesis block. The caller must call run.
func newNetwork(s settings, console io.Writer, logger *log.Logger) *network {
	n := &network{
		settings: s, console: console, log: logger,
		candidateBlocks: make(chan *candidate),
		calls:           make(chan func()),
		stopped:         make(chan struct{}),
		announcements:   lineconn.NewWriters(runtime.GOMAXPROCS(0)),
		chain:           recent.New(s.broadcastBlocks),
		terminals:       list.New(),
		validators:      map[string]int64{},
		staked:          new(big.Int),
	}
	n.extend(generateGenesis())
	return n
}

// do has run call f and returns when it has, or false when run is over.
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
	t.prompt = stakePrompt
	t.broadcastAt = time.Now().Add(n.broadcastEvery)
	t.place = n.terminals.PushBack(t)
	if n.terminals.Len() == 1 {
		n.broadcastTimer.Reset(n.broadcastEvery)
	}
	t.Send(lineconn.Text(stakePrompt.String()))
}

// admit makes a validator of t, at a new address.
func (n *network) admit(t *terminal, stake int64) {
	t.address = calculateHash(rand.Text()) // 130 random bits
	t.stake = stake
	t.prompt = bpmPrompt
	n.validators[t.address] = stake
	n.staked.Add(n.staked, big.NewInt(stake))
	t.Send(lineconn.Text(fmt.Sprintf("\nyou are validator %s with %d tokens staked\n%s", t.address, stake, bpmPrompt)))
	n.news.joined = t.address
	n.report()
}

// propose puts c into the open round, unless its validator is in already.
func (n *network) propose(c *candidate) {
	defer close(c.answered)
	t := c.terminal
	left := human.Duration(time.Until(n.roundEnds))
	if first := t.proposal; first != nil {
		t.Send(lineconn.Text(fmt.Sprintf("\nblock %d is already proposed with BPM %d; the next round opens in %v\n%s",
			first.Index, first.BPM, left, bpmPrompt)))
		return
	}
	c.Block = generateBlock(n.head, c.BPM, c.Validator)
	n.proposals = append(n.proposals, c)
	t.proposal = c
	t.Send(lineconn.Text(fmt.Sprintf("\nblock %d proposed with BPM %d; the winner is drawn in %v\n%s", c.Index, c.BPM, left, bpmPrompt)))
}

// slash takes the stake of a validator who typed what is no pulse: it is off the
// list, and its proposal in the open round is void.
func (n *network) slash(t *terminal, typed string) {
	if t.proposal != nil {
		n.proposals = slices.DeleteFunc(n.proposals, func(c *candidate) bool { return c == t.proposal })
		t.proposal = nil
	}
	t.Send(lineconn.Text(fmt.Sprintf("\nslashed: %s is not a pulse; %d tokens forfeited\n", human.Quote(typed, quoted), t.stake)))
	n.leave(t)
}

// endInput notes that t has nothing more to say: it stays only to hear how its
// proposal fares.
func (n *network) endInput(t *terminal) {
	t.ended, t.prompt = true, noPrompt
	if t.proposal == nil {
		n.leave(t)
	}
}

// leave takes t out of the network; a proposal of it stands. What was sent to it
// is its end. To leave twice is no harm.
func (n *network) leave(t *terminal) {
	t.Finish()
	if t.place == nil {
		return
	}
	n.terminals.Remove(t.place)
	t.place = nil
	if t.address != "" {
		delete(n.validators, t.address)
		n.staked.Sub(n.staked, big.NewInt(t.stake))
	}
	if errors.Is(t.Err(), lineconn.ErrNotReading) {
		n.news.cutOff++
		n.report()
	}
}

// messages is parts, each once, with every prompt after it.
func messages(parts ...[]byte) (all [prompts]*lineconn.Message) {
	last := len(parts) - 1
	for p := range prompts {
		with := slices.Clone(parts)
		with[last] = slices.Concat(parts[last], []byte(p.String()))
		all[p] = &lineconn.Message{Parts: with}
	}
	return all
}

// announce tells every terminal text, and winner, if it is still there, own as well.
func (n *network) announce(text string, winner *terminal, own string) {
	all := messages([]byte(text))
	for e := n.terminals.Front(); e != nil; e = e.Next() {
		if t := e.Value.(*terminal); t == winner {
			t.Send(lineconn.Text(text + own + t.prompt.String()))
		} else {
			t.Send(all[t.prompt])
		}
	}
}

// broadcastChain sends the chain to the terminals that are due. They share the
// bytes of its blocks.
func (n *network) broadcastChain() {
	now := time.Now()
	all := messages([]byte("\n["), n.chain.Newest(), []byte("]\n"))
	for _, m := range all {
		m.Replaceable = true
	}
	for e := n.terminals.Front(); e != nil; e = n.terminals.Front() {
		t := e.Value.(*terminal)
		if t.broadcastAt.After(now) {
			n.broadcastTimer.Reset(t.broadcastAt.Sub(now))
			break
		}
		t.Send(all[t.prompt])
		t.broadcastAt = now.Add(n.broadcastEvery)
		n.terminals.MoveToBack(e)
	}
}

// news is what the console has not shown yet. However fast terminals come and
// go, it is shown at most once a second.
type news struct {
	joined string      // the newest validator; empty: none since the last report
	cutOff int         // terminals that did not read
	pause  *time.Timer // rings when more may be shown
	paused bool
}

// report shows the news, now or when the pause after the last report is over.
func (n *network) report() {
	if n.news.paused {
		return
	}
	if n.news.cutOff > 0 {
		n.log.Printf("%d terminals cut off: they did not read for %v", n.news.cutOff, lineconn.Patience)
	}
	if n.news.joined != "" {
		fmt.Fprintf(n.console, "validators: %d with %d tokens staked\n", len(n.validators), n.staked)
		addresses := []string{n.news.joined}
		if len(n.validators) <= 20 {
			addresses = slices.Sorted(maps.Keys(n.validators))
		}
		for _, address := range addresses {
			if stake, ok := n.validators[address]; ok {
				fmt.Fprintf(n.console, "  %s %d\n", address, stake)
			}
		}
	}
	if n.news.cutOff > 0 || n.news.joined != "" {
		n.news.pause.Reset(time.Second)
		n.news.paused = true
	}
	n.news.joined, n.news.cutOff = "", 0
}

// ---- The handler ----

// handleConn is the conversation with one terminal, from its stake to its end.
func (n *network) handleConn(conn net.Conn) {
	t := &terminal{Conn: n.announcements.Conn(conn)}
	if !n.do(func() { n.enter(t) }) {
		t.Close()
		return
	}
	err := n.takeStake(t)
	if err == nil {
		err = n.takeBPMs(t)
	}
	n.do(func() {
		if err == io.EOF {
			n.endInput(t)
		} else {
			n.leave(t)
		}
	})
	t.Hangup()
	n.do(func() { n.leave(t) })
}

// quoted is how many characters of a bad input its sender gets to see.
const quoted = 40

// errSentAway ends the conversation from the server's side.
var errSentAway = errors.New("sent away")

// takeStake asks t for its stake until it has made it a validator: three times at most.
func (n *network) takeStake(t *terminal) error {
	for tries := 0; tries < 3; {
		typed, err := ask(t, stakePrompt)
		if err != nil && err != lineconn.ErrTooLong {
			return err
		}
		var stake int64
		if err == nil {
			stake, err = parseStake(typed)
		}
		if err == nil {
			n.do(func() { n.admit(t, stake) })
			return nil
		}
		tries++
		t.Send(lineconn.Text(fmt.Sprintf("\n%s is not a stake: %v\n%s", human.Quote(typed, quoted), err, stakePrompt)))
	}
	t.Send(lineconn.Text("\ntoo many tries, goodbye\n"))
	return errSentAway
}

// takeBPMs takes pulses from t, each as a candidate block, until its input ends
// or it types what is none.
func (n *network) takeBPMs(t *terminal) error {
	for {
		typed, err := ask(t, bpmPrompt)
		if err != nil && err != lineconn.ErrTooLong {
			return err
		}
		bpm, parseErr := strconv.Atoi(typed)
		if err != nil || parseErr != nil || bpm < 0 {
			n.do(func() { n.slash(t, typed) })
			return errSentAway
		}
		c := &candidate{Block: Block{BPM: bpm, Validator: t.address}, stake: t.stake, terminal: t, answered: make(chan struct{})}
		select {
		case n.candidateBlocks <- c:
			<-c.answered
		case <-n.stopped:
		}
	}
}

// ask returns the next line from t, without the spaces around it, when t has
// taken all that it was told; an empty line gets the prompt again. It fails as
// [lineconn.Conn.ReadLine] does.
func ask(t *terminal, p prompt) (typed string, err error) {
	for {
		t.Flush()
		typed, err = t.ReadLine()
		typed = strings.TrimSpace(typed)
		if typed != "" || err != nil {
			return typed, err
		}
		t.Send(lineconn.Text(p.String()))
	}
}

// refuse takes leave of a terminal for which there is no room.
func (n *network) refuse(conn net.Conn) {
	t := n.announcements.Conn(conn)
	t.Send(lineconn.Text("the server is full, try again later\n"))
	t.Finish()
	t.Hangup()
}

// parseStake reads a stake in tokens; its error says what would be one.
func parseStake(typed string) (int64, error) {
	stake, err := strconv.ParseInt(typed, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) && stake > 0:
		return 0, fmt.Errorf("the most is %d", int64(math.MaxInt64))
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, errors.New("it must be a whole number, such as 100")
	case stake < 1:
		return 0, errors.New("the least is 1")
	}
	return stake, nil
}

// ---- The lottery ----

// run is the lottery: it takes candidate blocks, ends each round with a draw
// and keeps all that is the network's, until ctx is done. Then it draws the
// open round at once and takes leave of every terminal.
func (n *network) run(ctx context.Context) {
	defer close(n.stopped)
	n.roundTimer = time.NewTimer(n.roundLength)
	n.roundEnds = time.Now().Add(n.roundLength)
	n.broadcastTimer = time.NewTimer(n.broadcastEvery)
	n.news.pause = time.NewTimer(0)
	for {
		select {
		case c := <-n.candidateBlocks:
			n.propose(c)
		case f := <-n.calls:
			f()
		case <-n.roundTimer.C:
			n.pickWinner()
			// By the clock, not by when the draw was done; rounds that it took are skipped.
			n.roundEnds = n.roundEnds.Add(n.roundLength)
			if late := time.Since(n.roundEnds); late >= 0 {
				n.roundEnds = n.roundEnds.Add(late + n.roundLength)
			}
			n.roundTimer.Reset(time.Until(n.roundEnds))
		case <-n.broadcastTimer.C:
			n.broadcastChain()
		case <-n.news.pause.C:
			n.news.paused = false
			n.report()
		case <-ctx.Done():
			n.pickWinner()
			goodbye := lineconn.Text("\nthe server is shutting down\n")
			for n.terminals.Len() > 0 {
				t := n.terminals.Front().Value.(*terminal)
				t.Send(goodbye)
				n.leave(t)
			}
			return
		}
	}
}

// pickWinner ends the round: one ticket is drawn evenly from all the tokens behind
// its proposals, and the block of its holder is checked, kept and announced.
// Without a proposal it does nothing. If the block cannot be kept, the proposals
// stay for the next draw.
func (n *network) pickWinner() {
	if len(n.proposals) == 0 {
		return
	}
	stakes := make([]int64, len(n.proposals))
	for i, c := range n.proposals {
		stakes[i] = c.stake
	}
	ticket, total, err := drawTicket(stakes)
	if err != nil {
		n.log.Printf("cannot draw the winner of block %d: %v; its proposals stay for the next draw", n.head.Index+1, err)
		return
	}
	winner := n.proposals[ticketHolder(stakes, ticket)]
	if err := n.forge(winner.Block); err != nil {
		n.log.Printf("block %d is not forged: %v; its proposals stay for the next draw", n.head.Index+1, err)
		return
	}
	share, _ := new(big.Rat).SetFrac(big.NewInt(winner.stake), total).Float64()
	fmt.Fprintf(n.console, "block %d forged by %s: ticket %d of %d from %d proposals, stake %d (%.1f%%)\n",
		winner.Index, winner.Validator, ticket, total, len(stakes), winner.stake, 100*share)
	n.announce("\nwinning validator: "+winner.Validator+"\n", winner.terminal, fmt.Sprintf("you forged block %d\n", winner.Index))
	decided := n.proposals
	n.proposals = nil
	for _, c := range decided {
		c.terminal.proposal = nil
		if c.terminal.ended {
			n.leave(c.terminal)
		}
	}
}

// drawTicket draws one of the tickets 1 to total, which is the sum of stakes, each
// as likely as any other and known to nobody before. It fails if there are none.
func drawTicket(stakes []int64) (ticket, total *big.Int, err error) {
	total = new(big.Int) // the sum may pass 64 bits
	var stake big.Int
	for _, s := range stakes {
		total.Add(total, stake.SetInt64(s))
	}
	if total.Sign() <= 0 {
		return nil, nil, errors.New("there are no tokens to draw from")
	}
	ticket, err = rand.Int(rand.Reader, total) // even: no modulo bias
	if err != nil {
		return nil, nil, err
	}
	return ticket.Add(ticket, big.NewInt(1)), total, nil
}

// ticketHolder returns whose ticket it is: the first stakes[0] tickets belong to
// proposer 0, the next stakes[1] to proposer 1, and so on. The ticket must be one of 1 to
// the sum of stakes.
func ticketHolder(stakes []int64, ticket *big.Int) int {
	rest := new(big.Int).Set(ticket)
	var stake big.Int
	for i, s := range stakes {
		if rest.Cmp(stake.SetInt64(s)) <= 0 {
			return i
		}
		rest.Sub(rest, &stake)
	}
	panic(fmt.Sprintf("ticket %d is beyond the last", ticket))
}

// forge makes block the new head, once it is checked.
func (n *network) forge(block Block) error {
	if err := blockFault(block, n.head); err != nil {
		return err
	}
	n.extend(block)
	return nil
}

// extend makes block the new head.
func (n *network) extend(block Block) {
	line, err := json.Marshal(block)
	if err != nil {
		panic(err) // a Block has nothing that JSON cannot say
	}
	n.head = block
	n.chain.Add(line)
}

// ---- Settings ----

// settings is what the environment and .env may change; see README.md.
type settings struct {
	addr            string        // host:port to listen on
	roundLength     time.Duration // > 0
	broadcastEvery  time.Duration // > 0
	broadcastBlocks int           // the newest blocks in a broadcast; 0: all
	maxClients      int           // terminals at once; 0: no limit
}

// loadSettings reads the settings with lookup, such as os.LookupEnv.
func loadSettings(lookup func(name string) (value string, ok bool)) (settings, error) {
	r := env.New(lookup)
	s := settings{
		addr:            r.Address("ADDR", "9000"),
		roundLength:     r.Duration("ROUND", "30s"),
		broadcastEvery:  r.Duration("BROADCAST", "1m"),
		broadcastBlocks: r.Count("BROADCAST_BLOCKS", "1000", "a number of blocks, or 0 for the whole chain"),
		maxClients:      r.Count("MAX_CLIENTS", "10000", "a number of terminals, or 0 for as many as the system allows"),
	}
	return s, r.Err()
}

// ---- Main ----

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	logger := log.New(os.Stderr, "", log.LstdFlags)
	if err := start(ctx, os.Stdout, logger); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start runs a server with the settings of the environment and .env until ctx is done.
func start(ctx context.Context, console io.Writer, logger *log.Logger) error {
	if err := godotenv.Load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read .env: %w", err)
	}
	s, err := loadSettings(os.LookupEnv)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("ADDR=%q: cannot listen there: %w; want a free port of this machine", os.Getenv("ADDR"), err)
	}
	n := newNetwork(s, console, logger)
	spew.Fdump(console, n.head)
	fmt.Fprintf(console, "listening on %s\n", ln.Addr())
	n.serve(ctx, ln.(*net.TCPListener))
	return nil
}

// shutdownLimit is how long a terminal may take for the last words before the
// process ends without it.
const shutdownLimit = 4 * time.Second

// serve plays with the terminals that connect to ln until ctx is done and
// every terminal has left, or shutdownLimit later.
func (n *network) serve(ctx context.Context, ln accept.Listener) {
	go n.run(ctx)
	server := &accept.Server{Handle: n.handleConn, Refuse: n.refuse, Max: n.maxClients, Log: n.log}
	server.Serve(ctx, ln)
	<-n.stopped
	if server.Wait(shutdownLimit) {
		n.announcements.Close()
	}
}

// Command proofofstake runs a proof-of-stake blockchain as a game that needs nothing but netcat. Players connect, stake
// tokens and type their pulse (BPM) to propose a block. At the end of each round, a lottery weighted by stake picks the
// block that is added to the chain.
//
// The program keeps the functions of the tutorial "Code your own Proof of Stake blockchain in Go!", in their order.
// README.md lists the differences and the reasons for them.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/davecgh/go-spew/spew"

	"proofofstake/internal/console"
	"proofofstake/internal/draw"
	"proofofstake/internal/ledger"
	"proofofstake/internal/lineconn"
	"proofofstake/internal/linefile"
	"proofofstake/internal/settings"
)

// ---- Blocks ----

// Block is one entry of the chain: a BPM, and the address of the validator who forged the block.
type Block struct {
	Index     int
	Timestamp string // RFC 3339, in UTC, with all nine digits of the nanoseconds
	BPM       int
	Hash      string // see calculateBlockHash
	PrevHash  string
	Validator string
}

// calculateHash returns the SHA-256 of s in lower-case hex.
func calculateHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// calculateBlockHash returns the hash of all fields of block except Hash. Each field ends in a newline, so that no two
// different blocks have the same input to the hash, and anyone can recompute it:
//
//	printf '%s\n' "$index" "$timestamp" "$bpm" "$prevhash" "$validator" | sha256sum
func calculateBlockHash(block Block) string {
	return calculateHash(strconv.Itoa(block.Index) + "\n" + block.Timestamp + "\n" + strconv.Itoa(block.BPM) + "\n" +
		block.PrevHash + "\n" + block.Validator + "\n")
}

// timestampLayout is the layout of Block.Timestamp, for package time.
const timestampLayout = "2006-01-02T15:04:05.000000000Z"

// beforeGenesis returns a placeholder for the block before the genesis block. It is the head of an empty chain.
func beforeGenesis() Block { return Block{Index: -1} }

// generateBlock returns the block that follows oldBlock. Timestamps never go backwards: if the clock was set back, the
// new block repeats the timestamp of oldBlock.
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

// isBlockValid reports whether newBlock can follow oldBlock.
func isBlockValid(newBlock, oldBlock Block) bool { return validateBlock(newBlock, oldBlock) == nil }

// validateBlock returns an error that says why newBlock cannot follow oldBlock, or nil if it can.
func validateBlock(newBlock, oldBlock Block) error {
	index, at := newBlock.Index, newBlock.Timestamp
	// Parsing as time.RFC3339Nano is much faster than as timestampLayout but accepts more, so check the rest by hand.
	_, err := time.Parse(time.RFC3339Nano, at)
	switch {
	case index != oldBlock.Index+1:
		return fmt.Errorf("wrong index: found block %d, want block %d", index, oldBlock.Index+1)
	case newBlock.PrevHash != oldBlock.Hash:
		return fmt.Errorf("wrong previous hash: block %d does not point to the block before it", index)
	case newBlock.Hash != calculateBlockHash(newBlock):
		return fmt.Errorf("wrong hash: block %d does not match its hash", index)
	case index == 0 && (newBlock.BPM != 0 || newBlock.Validator != ""):
		return errors.New("wrong genesis block: it has a BPM or a validator")
	case index > 0 && !isPulse(newBlock.BPM):
		return fmt.Errorf("wrong BPM: block %d has %d, want %s", index, newBlock.BPM, pulseRule)
	case index > 0 && (len(newBlock.Validator) != 64 || strings.Trim(newBlock.Validator, "0123456789abcdef") != ""):
		return fmt.Errorf("wrong validator: block %d does not have the address of a validator", index)
	case err != nil || len(at) != len(timestampLayout) || at[19] != '.' || at[29] != 'Z':
		return fmt.Errorf("wrong timestamp: block %d does not have the form %s", index, timestampLayout)
	case at < oldBlock.Timestamp:
		return fmt.Errorf("wrong timestamp: block %d is older than the block before it", index)
	}
	return nil
}

// decodeNext decodes a line of the chain file as the block that follows oldBlock.
func decodeNext(line []byte, oldBlock Block) (newBlock Block, err error) {
	if err = linefile.Decode(line, &newBlock); err == nil {
		err = validateBlock(newBlock, oldBlock)
	}
	return newBlock, err
}

// ---- Pulses and stakes ----

// What a BPM must be, and what the help says about it.
const (
	pulseRule = "a whole number, 0 or more"
	pulseHelp = "Type your pulse, a whole number such as 72. It proposes the next block.\n"
)

// isPulse reports whether a block may have this BPM.
func isPulse(bpm int) bool { return bpm >= 0 }

// parsePulse parses a BPM, or returns an error that says why the validator is slashed. readErr is the error from
// ReadLine: if it is not nil, typed is incomplete, and not a BPM.
func parsePulse(typed string, readErr error) (int, error) {
	rule := pulseRule
	switch bpm, err := strconv.Atoi(typed); {
	case readErr != nil:
	case err == nil && isPulse(bpm):
		return bpm, nil
	case errors.Is(err, strconv.ErrRange) && bpm > 0:
		rule = fmt.Sprintf("a whole number from 0 to %d", math.MaxInt)
	case errors.Is(err, strconv.ErrSyntax) && strings.TrimFunc(typed, unicode.IsDigit) == "":
		rule += ", in the digits 0 to 9"
	}
	return 0, errors.New("not a BPM (" + rule + ")")
}

// parseStake parses a stake from 1 to limit, or returns an error that tells the player what to type instead.
// readErr is the error from ReadLine: if it is not nil, parseStake returns it.
func parseStake(typed string, readErr error, limit int64) (int64, error) {
	if readErr != nil {
		return 0, readErr
	}
	stake, err := strconv.ParseInt(typed, 10, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, errors.New("enter a whole number, such as 100")
	case stake < 1:
		return 0, errors.New("the minimum is 1")
	case stake > limit || err != nil:
		return 0, fmt.Errorf("the maximum is %d", limit)
	}
	return stake, nil
}

// ---- The network's state ----

// network is the state that all clients share. One goroutine, run, owns the fields marked "Owned by run". So events
// happen in one order, and every client gets its messages in that order. Candidate blocks reach run over a channel, as
// in the tutorial, and wait there, a second at most, while a block is being saved. All other requests are functions.
// They share a second channel, calls, which is served even during a save (see do).
type network struct {
	settings.Settings
	console io.Writer      // shows the game; its Write must not block
	log     *log.Logger    // for warnings and errors; must not block
	ledger  *ledger.Ledger // saves blocks and their draws; run waits for it only in stop

	candidateBlocks chan *proposal
	calls           chan func()
	stopped         chan struct{} // closed when run has returned
	commands        []command

	// Owned by run.
	head         Block            // the newest block of the chain
	recentBlocks *lineconn.Feed   // as a broadcast shows them
	drawAnswer   []byte           // what the draw command shows
	clients      *lineconn.Group  // receive announcements and broadcasts
	validators   map[string]int64 // the stake of each address, in tokens
	roster       *console.Roster  // shows changes to validators on the console
	round        *round           // the open round, or the last one while its block is pending
	pending      *pendingBlock    // the block being saved, or nil while a round is open
	saveTimer    <-chan time.Time // ends the proposals' wait for pending; then they are refused
}

// client is one connection. Its fields are owned by run. Until run returns, the client's handler may use only ReadLine,
// Close and address. The address changes only while the handler waits in do.
type client struct {
	*lineconn.Conn
	from       netip.Prefix // the client's network address; zero if the client is exempt from MaxPerAddress
	address    string       // of its validator; empty until it has staked
	proposal   *proposal    // in the round; nil if it has none
	inputEnded bool         // no more input; it is removed after its round
	badStakes  int8         // typed so far
}

// proposal is the tutorial's candidate block: what a validator offers as the next block. Only the winner's becomes a
// Block.
type proposal struct {
	client *client // nil when the client has left
	bpm    int
	entry  int // index in the draw's entries, once the proposal is in a round
}

// round is the time in which proposals count. Its draw has a secret from the start, and one entry per proposal, in the
// order of the proposals. The seal, a hash of the secret, is published before the first proposal; the secret itself is
// published with the winner. So anyone can check that it was not chosen to suit the proposals (see package draw).
type round struct {
	*draw.Draw
	proposals  []*proposal
	perAddress map[netip.Prefix]int // the number of proposals from each network address
	deadline   time.Time
	timer      <-chan time.Time // fires at the deadline
}

// addProposal adds p, with one ticket per token of its client's stake, and returns its first and last ticket.
func (r *round) addProposal(p *proposal, stake int64) (first, last *big.Int) {
	p.client.proposal, p.entry = p, len(r.proposals)
	r.proposals = append(r.proposals, p)
	r.perAddress[p.client.from]++
	return r.Add(draw.Entry{Name: p.client.address, Tickets: stake, Note: strconv.Itoa(p.bpm)})
}

// pendingBlock is a block that has won its round but has not been announced yet. It is immutable.
type pendingBlock struct {
	Block
	draw.Outcome            // of the round that it won
	next         *draw.Draw // decides the round that opens when the block is saved
}

// newNetwork loads the chain from the chain file, or starts a new chain with a genesis block. It fails if a file is in
// use, invalid or not writable, if the draws belong to another chain, or if ctx is canceled while it reads the chain.
func newNetwork(ctx context.Context, s settings.Settings, stdout io.Writer, logger *log.Logger) (*network, error) {
	files, err := ledger.Open(s.ChainFile, s.DrawsFile, logger)
	if err != nil {
		return nil, err
	}
	n := &network{
		Settings: s, console: stdout, log: logger, ledger: files,
		candidateBlocks: make(chan *proposal), calls: make(chan func()), stopped: make(chan struct{}),
		head: beforeGenesis(), validators: map[string]int64{}, round: &round{},
		clients: lineconn.NewGroup(s.Broadcast), roster: console.NewRoster(), commands: commands(),
		recentBlocks: lineconn.NewFeed("\n[", "]\n", s.BroadcastBlocks),
		drawAnswer:   []byte("\nno block has been drawn yet\n"),
	}
	if err := n.load(ctx); err != nil {
		n.ledger.Close()
		return nil, err
	}
	return n, nil
}

// load reads the chain file, or saves a new genesis block. Then it shows the genesis block on the console, prepares the
// answer to the draw command, and opens the first round.
func (n *network) load(ctx context.Context) error {
	var genesis Block
	last, err := n.ledger.Load(ctx, func(line []byte) (hash string, err error) {
		block, err := decodeNext(line, n.head)
		if err == nil {
			genesis = cmp.Or(genesis, block) // the first one
			n.extend(block, line)
		}
		return block.Hash, err
	})
	if err != nil {
		return err
	}
	restored := n.head != beforeGenesis()
	if !restored {
		genesis = generateBlock(n.head, 0, "")
		if err := n.ledger.Append(linefile.Encode(genesis)); err != nil {
			return fmt.Errorf("saving the genesis block: %w", err)
		}
		n.extend(genesis, linefile.Encode(genesis))
	}
	spew.Fdump(n.console, genesis)
	if restored {
		fmt.Fprintf(n.console, "restored %s from %s; the head is\n  %s\n",
			console.Plural(n.head.Index+1, "block"), n.ChainFile, n.head.Hash)
	}
	if now := time.Now().UTC().Format(timestampLayout); n.head.Timestamp > now {
		n.log.Printf("%s: block %d is from %s; until then, new blocks repeat that time: check the clock",
			n.ChainFile, n.head.Index, n.head.Timestamp)
	}
	if last.IsAnnounced {
		n.drawAnswer = drawNotice(last.Index, last.Outcome)
	} else if last.Index > 0 {
		n.drawAnswer = fmt.Appendf(nil, "\nblock %d was drawn last, but is not in the chain\n", last.Index)
	}
	n.openRound(draw.New(n.head.Hash, last.Outcome.Hash))
	return nil
}

// extend makes block, which is saved, the head of the chain. Every block passes through here, whether it is loaded, the
// new genesis block, or about to be announced. line is its line in the chain file.
func (n *network) extend(block Block, line []byte) {
	n.head = block
	n.recentBlocks.Add(line)
}

// do makes run call f, and waits until f has returned. It returns false if run has stopped. It is not inlined: in
// handleConn's frame, its variables would cost 2 KiB of stack for each idle client, as internal/bench shows.
//
//go:noinline
func (n *network) do(f func()) bool {
	done := make(chan struct{})
	select {
	case n.calls <- func() { f(); close(done) }:
		<-done
		return true
	case <-n.stopped:
		return false
	}
}

// The methods from here to the handler, and those that answer a command, belong to run: others call them through do.

// addClient adds a client that has connected, and asks for its stake.
func (n *network) addClient(c *client) {
	n.clients.Add(c.Conn)
	c.SetPrompt(stakePrompt)
	c.Tell("") // shows the prompt alone
}

// removeClient removes c from the network. Its proposal, if it made one, stands. It is safe to call removeClient twice.
func (n *network) removeClient(c *client) {
	c.End("")
	if !n.clients.Remove(c.Conn) {
		return
	}
	if c.proposal != nil {
		c.proposal.client = nil
	}
	if errors.Is(c.Err(), lineconn.ErrStalled) {
		n.roster.Disconnected()
	}
	if stake, ok := n.removeValidator(c); ok {
		n.roster.Leave(c.address, stake)
	}
}

// addValidator makes c a validator, at a new address that nobody can guess.
func (n *network) addValidator(c *client, stake int64) {
	c.address = calculateHash(rand.Text()) // rand.Text has 130 random bits
	n.validators[c.address] = stake
	n.roster.Join(c.address)
	c.SetPrompt(bpmPrompt)
	index, hint := n.head.Index+1, ""
	if n.pending == nil {
		hint = fmt.Sprintf("type your pulse to propose block %d; the winner is drawn in %s\n", index, n.timeLeft())
	}
	c.Tell("\nyou are validator %s with %s staked\n%s%s",
		c.address, console.Plural(stake, "token"), n.round.SealLine(index), hint)
}

// removeValidator removes c from validators. It returns the stake, and whether c was a validator.
func (n *network) removeValidator(c *client) (stake int64, ok bool) {
	stake, ok = n.validators[c.address]
	delete(n.validators, c.address)
	return stake, ok
}

// propose adds p to the open round, or tells its client why not.
func (n *network) propose(p *proposal) {
	c, index, left := p.client, n.head.Index+1, n.timeLeft()
	isLimited := c.from.IsValid() && n.MaxPerAddress > 0
	switch {
	case n.pending != nil:
		c.Tell("%s", n.notSaved())
	case c.proposal != nil:
		c.Tell("\nyou already proposed block %d, with BPM %d; the next round opens in %s\n", index, c.proposal.bpm, left)
	case len(n.round.proposals) >= n.MaxProposals() || isLimited && n.round.perAddress[c.from] >= n.MaxPerAddress:
		c.Tell("\nthis round is full; the next one opens in %s\n", left)
	default:
		first, last := n.round.addProposal(p, n.validators[c.address])
		tickets := fmt.Sprintf("your tickets are %d to %d", first, last)
		if first.Cmp(last) == 0 {
			tickets = fmt.Sprintf("your ticket is %d", first)
		}
		c.Tell("\nyou proposed block %d with BPM %d: %s; the winner is drawn in %s\n", index, p.bpm, tickets, left)
		if len(n.round.proposals) == 1 {
			n.report(fmt.Sprintf("block %d: proposed; the winner is drawn in %s\n", index, left))
		}
	}
}

// notSaved returns the message for clients who propose or ask about the round while the pending block is not saved yet.
func (n *network) notSaved() string {
	return fmt.Sprintf("\nblock %d has been drawn but not saved yet; try again later\n", n.pending.Index)
}

// timeLeft returns how much longer the open round lasts, as text.
func (n *network) timeLeft() string { return console.Duration(time.Until(n.round.deadline)) }

// slash takes the stake of c, which typed something that is not a BPM. typed is already quoted; err says what is wrong.
// The proposal of c is void if its round is still open.
func (n *network) slash(c *client, typed string, err error) {
	if c.proposal != nil && n.pending == nil {
		n.round.Slash(c.proposal.entry)
	}
	stake, _ := n.removeValidator(c)
	n.roster.Slash(c.address, stake, typed)
	c.End(fmt.Sprintf("\nslashed: %s is %v; %s forfeited\nto play again, connect again\n",
		typed, err, console.Plural(stake, "token")))
}

// endInput records that c has closed its input. If c has a proposal, c stays connected until its round is decided.
func (n *network) endInput(c *client) {
	c.SetPrompt(noPrompt)
	c.inputEnded = true
	if c.proposal == nil {
		n.removeClient(c)
	}
}

// ---- The handler ----

// The prompts, and the last message to every client when the server stops.
const (
	stakePrompt     = "Enter token balance:"
	bpmPrompt       = "\nEnter a new BPM:"
	noPrompt        = "" // the client has ended its input
	shutdownMessage = "\nthe server is shutting down\n"
)

// handleConn talks to one client, whose network address is from. It asks for a stake, then for one BPM after another.
// It ends when run calls End (for quit, a slash, three bad stakes, EOF or a shutdown), or when the connection fails.
func (n *network) handleConn(conn net.Conn, from netip.Prefix) {
	c := &client{Conn: lineconn.NewConn(conn), from: from}
	if !n.do(func() { n.addClient(c) }) {
		c.End(stakePrompt + shutdownMessage)
		c.Close()
		return
	}
	typed, err := c.ReadLine()
	for ; err == nil || err == lineconn.ErrTooLong; typed, err = c.ReadLine() {
		switch {
		case n.handleCommand(c, typed, err):
		case c.address == "":
			n.handleStake(c, typed, err)
		default:
			n.handleBPM(c, typed, err)
		}
	}
	if err == io.EOF {
		n.do(func() { n.endInput(c) })
	}
	c.Close() // waits until run has called End, unless the connection has failed
	n.do(func() { n.removeClient(c) })
}

// command is something that a player may type instead of a number, without being slashed.
type command struct {
	name       string // in lower case; empty for an empty line
	needsStake bool
	answer     func(n *network, c *client) // is called by run
	help       string                      // what the help says about it; empty if the help does not list it
}

// commands returns all commands. If several share a name, a client gets the first one that it may use.
func commands() []command {
	showDraw := func(n *network, c *client) { c.Show(n.drawAnswer) }
	quit := func(_ *network, c *client) { c.End("\ngoodbye\n") }
	return []command{
		{"", true, (*network).tellRound, "the round so far"},
		{"", false, (*network).tellHelp, ""},
		{"help", false, (*network).tellHelp, ""},
		{"?", false, (*network).tellHelp, ""},
		{"draw", false, showDraw, "show the last draw, so that you can check it"},
		{"quit", true, quit, "leave; your proposal stands"},
		{"quit", false, quit, "leave"},
		{"exit", false, quit, ""},
	}
}

// mayUse reports whether c may use cmd, given whether it has staked.
func (c *client) mayUse(cmd command) bool { return c.address != "" || !cmd.needsStake }

// handleCommand runs the command that c typed, and reports whether it was one.
func (n *network) handleCommand(c *client, typed string, err error) bool {
	for _, cmd := range n.commands {
		if err == nil && strings.EqualFold(typed, cmd.name) && c.mayUse(cmd) {
			n.do(func() { cmd.answer(n, c) })
			return true
		}
	}
	return false
}

// tellHelp explains the prompt that c sees, and lists the commands.
func (n *network) tellHelp(c *client) {
	list, listed := "", map[string]bool{}
	for _, cmd := range n.commands {
		if cmd.help != "" && !listed[cmd.name] && c.mayUse(cmd) {
			list += fmt.Sprintf("  %-5s  %s\n", cmp.Or(cmd.name, "Enter"), cmd.help)
			listed[cmd.name] = true
		}
	}
	limit := "up"
	if n.MaxStake < math.MaxInt64 {
		limit = fmt.Sprintf("to %d", n.MaxStake)
	}
	if c.address == "" {
		c.Tell("\nYour stake is a whole number, from 1 %s. The tokens are play money.\n"+
			"The more you stake, the better your chance to forge (add) the next block.\n%s", limit, list)
		return
	}
	c.Tell("\n%sYou have one proposal per round, and one ticket per token you staked.\n"+
		"When the round ends, one ticket is drawn, and its owner forges the block.\n%s"+
		"Anything else gets you slashed: you lose your stake and your proposal.\n", pulseHelp, list)
}

// tellRound tells c about the open round. Proposals of slashed validators do not count.
func (n *network) tellRound(c *client) {
	if n.pending != nil {
		c.Tell("%s", n.notSaved())
		return
	}
	proposals, total := n.round.Eligible()
	share := ""
	if c.proposal != nil {
		tickets := n.round.Entries[c.proposal.entry].Tickets
		share = fmt.Sprintf(", %d of them yours (%s)", tickets, console.Percent(tickets, total))
	}
	c.Tell("\nblock %d: %s, %s%s; the winner is drawn in %s\n",
		n.head.Index+1, console.Plural(proposals, "proposal"), console.Plural(total, "token"), share, n.timeLeft())
}

// handleStake makes c a validator if it typed a stake. A client has three tries.
func (n *network) handleStake(c *client, typed string, err error) {
	stake, err := parseStake(typed, err, n.MaxStake)
	if err == nil {
		n.do(func() { n.addValidator(c, stake) })
		return
	}
	n.do(func() {
		problem := fmt.Sprintf("\n%s is not a stake: %v", console.Quote(typed, maxQuote), err)
		switch c.badStakes++; c.badStakes {
		case 1:
			c.Tell("%s\n", problem)
		case 2:
			c.Tell("%s; one more try\n", problem)
		default:
			c.End(problem + "\ntoo many tries, goodbye\n")
		}
	})
}

// handleBPM proposes a block with the BPM that c typed, or has c slashed if that is not a BPM.
func (n *network) handleBPM(c *client, typed string, err error) {
	bpm, err := parsePulse(typed, err)
	if err != nil {
		n.do(func() { n.slash(c, console.Quote(typed, maxQuote), err) })
		return
	}
	select {
	case n.candidateBlocks <- &proposal{client: c, bpm: bpm}:
	case <-n.stopped: // the next ReadLine returns an error
	}
}

// refuse tells a client why it cannot connect, and closes its connection.
func (n *network) refuse(conn net.Conn, reason error) {
	message := "the server is full; try again later\n"
	if reason == lineconn.ErrAddressFull {
		message = "too many connections from your address; try again later\n"
	}
	c := lineconn.NewConn(conn)
	c.End(message)
	c.Close()
}

// ---- The lottery ----

// run is the lottery. It collects candidate blocks, ends each round with a draw, and owns the network's state. When ctx
// is done, it ends the open round early, with a draw, sends every client the shutdown message, and returns.
func (n *network) run(ctx context.Context) {
	defer close(n.stopped)
	for {
		candidateBlocks := n.candidateBlocks
		if n.saveTimer != nil {
			candidateBlocks = nil // they wait until the pending block is saved, for a second at most
		}
		select {
		case p := <-candidateBlocks:
			n.propose(p)
		case f := <-n.calls:
			f()
		case <-n.round.timer:
			n.pickWinner()
		case <-n.ledger.Saved:
			n.announce()
		case <-n.saveTimer:
			n.saveTimer = nil // from now on, clients who propose are told to try again later
			n.log.Printf("saving block %d is taking over a second; proposals are refused until it is saved", n.pending.Index)
		case <-n.clients.Due.C: // a broadcast is due
			n.clients.Broadcast(n.recentBlocks)
		case <-n.roster.Due.C: // changes to validators are due on the console
			n.roster.Show(n.console, n.log, n.validators)
		case <-ctx.Done():
			n.stop()
			return
		}
	}
}

// openRound opens the round that d will decide. Its deadline is one round length after the previous one. If that has
// passed (first round, slow save, system sleep), the deadline is one round length from now: missed rounds are not made
// up for. Clients that stayed only for the end of the previous round are removed.
func (n *network) openRound(d *draw.Draw) {
	previous := n.round
	deadline := previous.deadline.Add(n.Round)
	if now := time.Now(); !deadline.After(now) {
		deadline = now.Add(n.Round)
	}
	timer := time.After(time.Until(deadline))
	n.round = &round{Draw: d, perAddress: map[netip.Prefix]int{}, deadline: deadline, timer: timer}
	n.pending, n.saveTimer = nil, nil
	for _, p := range previous.proposals {
		if c := p.client; c != nil {
			c.proposal = nil
			if c.inputEnded {
				n.removeClient(c)
			}
		}
	}
}

// pickWinner ends the round: it draws one of the tickets, and has the ledger save the block of the ticket's owner. No
// round is open until the block is saved. If no proposal is eligible, there is no block, and the next round keeps the
// seal. (A proposal is eligible if its validator was not slashed.)
func (n *network) pickWinner() {
	outcome := n.round.Outcome()
	if outcome.Winner < 0 {
		n.openRound(n.round.Again())
		return
	}
	bpm, address := n.round.proposals[outcome.Winner].bpm, n.round.Entries[outcome.Winner].Name
	block := generateBlock(n.head, bpm, address)
	if !isBlockValid(block, n.head) { // cannot happen without a bug
		n.log.Printf("block %d does not follow the head: %v", block.Index, validateBlock(block, n.head))
		n.openRound(n.round.Again())
		return
	}
	next := draw.New(block.Hash, outcome.Hash)
	n.pending = &pendingBlock{Block: block, Outcome: outcome, next: next}
	entry := ledger.Entry{Index: block.Index, Block: linefile.Encode(block)}
	if n.DrawsFile != "" {
		entry.Record = draw.NewRecord(block.Index, block.Hash, outcome, next)
	}
	n.saveTimer = time.After(saveTimeout)
	n.ledger.Save(entry)
}

// announce extends the chain by the saved pending block, announces the winner to all clients, and opens the next round.
func (n *network) announce() {
	p := n.pending
	n.extend(p.Block, linefile.Encode(p.Block))
	n.report(n.blockReport(p))
	n.drawAnswer = drawNotice(p.Index, p.Outcome)
	text, seal := announcement(p, n.round.Secret()), p.next.SealLine(p.Index+1)
	var except *lineconn.Conn // the winner, which gets its own message, or nil if it has left
	if c := n.round.proposals[p.Winner].client; c != nil {
		except = c.Conn
		c.Tell("%syou forged block %d\n%s", text, p.Index, seal)
	}
	n.clients.Announce([]byte(text+seal), except)
	n.openRound(p.next)
}

// report shows text on the console, after the changes to validators that came before it. If rounds are shorter than a
// second, it leaves the changes to the loop in run, which shows them less often.
func (n *network) report(text string) {
	if n.Round >= time.Second {
		n.roster.Show(n.console, n.log, n.validators)
	}
	io.WriteString(n.console, text)
}

// stop ends the open round early, with a draw, and announces its block if it can be saved in time. Then it disconnects
// all clients. While a block is pending, no round is open, and stop waits for that block instead.
func (n *network) stop() {
	if n.pending == nil {
		n.pickWinner()
	}
	if n.pending != nil {
		select {
		case <-n.ledger.Saved:
			n.announce()
		case <-time.After(lastSaveTimeout):
			n.log.Printf("block %d was not announced: it was not saved before the shutdown", n.pending.Index)
		}
	}
	n.ledger.Cancel() // stops retrying the save
	n.clients.EndAll(shutdownMessage)
}

// ---- Texts ----

const (
	maxQuote = 40        // columns shown of what a player typed
	maxShown = 200 << 10 // bytes of draw lines sent to a client
)

// announcement returns what every client gets when p has won: the tutorial's line, then how p was drawn. announce adds
// the winner's own line and the next seal.
func announcement(p *pendingBlock, secret string) string {
	return fmt.Sprintf("\nwinning validator: %s\nblock %d, BPM %d: %v\ndraw %d secret: %s\n",
		p.Validator, p.Index, p.BPM, p.Outcome, p.Index, secret)
}

// blockReport returns what the console shows about p. Proposals of slashed validators do not count.
func (n *network) blockReport(p *pendingBlock) string {
	stake := n.round.Entries[p.Winner].Tickets
	proposals, total := n.round.Eligible()
	return fmt.Sprintf("block %d: BPM %d, %v\n  forged by %s\n  who staked %d of %s (%s); %s\n%s",
		p.Index, p.BPM, p.Outcome, p.Validator, stake, console.Plural(total, "token"), console.Percent(stake, total),
		console.Plural(proposals, "proposal"), p.next.SealLine(p.Index+1))
}

// drawNotice returns what the draw command shows: how the block with this index was drawn.
func drawNotice(index int, o draw.Outcome) []byte {
	if len(o.Lines) > maxShown {
		return fmt.Appendf(nil, "\nblock %d: %v; its %d lines are too many to show, see the draws file\n",
			index, o, strings.Count(o.Lines, "\n"))
	}
	return fmt.Appendf(nil, "\nblock %d: %v; hash these lines to check it:\n%s", index, o, o.Lines)
}

// ---- Checking the files ----

// verify checks a chain file and, unless drawsName is empty, its draws file. It can run while a server writes to them.
// Its memory use does not grow with their size.
func verify(chainName, drawsName string, stdout, stderr io.Writer) error {
	if chainName == "" {
		return errors.New("nothing to verify: CHAIN_FILE is empty, so the chain is in memory; name a file")
	}
	head := beforeGenesis()
	next := func(line []byte, draws *draw.Records) (hash string, err error) {
		block, err := decodeNext(line, head)
		if err == nil {
			head = block
			draws.CheckBlock(head.Index, head.Hash, head.Validator, strconv.Itoa(head.BPM))
		}
		return block.Hash, err
	}
	return ledger.Verify(chainName, drawsName, stdout, stderr, next)
}

// ---- Main ----

const usage = `usage: proofofstake                          run the server
       proofofstake verify [CHAIN [DRAWS]]   check the chain and its draws
       proofofstake fairness [DRAWS]         show whether wins follow stakes
`

func main() {
	args := os.Args[1:]
	if len(args) > 0 && slices.Contains([]string{"-h", "-help", "--help", "help"}, args[len(args)-1]) {
		fmt.Print(usage, settings.Usage())
		return
	}
	err := settings.ReadDotEnv(os.Stderr)
	switch {
	case err != nil:
	case len(args) == 0:
		err = runServer()
	case args[0] == "verify" && len(args) <= 3:
		chain, draws := settings.FilesToVerify(args[1:])
		err = verify(chain, draws, os.Stdout, os.Stderr)
	case args[0] == "fairness" && len(args) <= 2:
		draws := append(args[1:], settings.Value("DRAWS_FILE"))[0] // the argument, or else the setting
		err = draw.Fairness(os.Stdout, draws, settings.Value("CHAIN_FILE"))
	default:
		fmt.Fprintf(os.Stderr, "cannot run %s\n%s%s", console.Quote(strings.Join(args, " "), 60), usage, settings.Usage())
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(err.Error(), ".; ", "; ")) // Windows ends its errors with a period
		os.Exit(1)
	}
}

// runServer runs a server until it is interrupted, for example by Ctrl-C.
func runServer() error {
	s, err := settings.Load()
	if err != nil {
		return err
	}
	ctx := console.Context()
	_, _ = time.Now().Zone() // loads the time zone for the log: later, file descriptors may have run out
	stdout, stderr := console.New(os.Stdout), console.New(os.Stderr)
	defer stdout.Close(consoleTimeout)
	defer stderr.Close(consoleTimeout)
	logger := log.New(stderr, "", log.LstdFlags)
	ln, err := lineconn.Listen(s.Addr, logger)
	if err != nil {
		return settings.AddrError(err)
	}
	n, err := newNetwork(ctx, s, stdout, logger)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%slistening on %s\n%srounds of %s; chain: %s; Ctrl-C stops the server\n",
		n.round.SealLine(n.head.Index+1), ln.Addr(), console.Join(ln.Addr()), settings.Value("ROUND"), s.ChainPath())
	n.serve(ctx, ln)
	return nil
}

// Timeouts. A shutdown takes less than 5 s: shutdownTimeout includes lastSaveTimeout.
const (
	saveTimeout     = time.Second            // how long proposals wait for the pending block
	lastSaveTimeout = 2 * time.Second        // how long the shutdown waits for it
	shutdownTimeout = 4 * time.Second        // for the last block and the last messages to clients
	consoleTimeout  = 200 * time.Millisecond // how long each of stderr and stdout may take after that
)

// serve handles the clients that connect to ln until ctx is done. Then it waits until they are all gone, but no longer
// than shutdownTimeout.
func (n *network) serve(ctx context.Context, ln lineconn.Listener) {
	go n.run(ctx)
	server := &lineconn.Server{
		Handle: n.handleConn, Refuse: n.refuse, Log: n.log,
		MaxConns: n.MaxClients, MaxPerAddress: n.MaxPerAddress,
	}
	server.Serve(ctx, ln)
	gone := make(chan struct{})
	go func() {
		<-n.stopped
		server.Wait()
		n.ledger.Close()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(shutdownTimeout):
	}
}

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// terminal is one connection to the server. Its member of the crowd writes to it and
// waits; its own goroutine, listen, reads and holds every message against what the
// contract says after all that was typed and heard before.
type terminal struct {
	soak     *soak
	epoch    *epoch
	conn     *net.TCPConn
	name     string
	dialed   time.Time     // before it connected
	changed  chan struct{} // has a value when the member should look again
	finished chan struct{} // closed when it is at its end

	mu        sync.Mutex
	pause     chan struct{} // not nil: do not read until it is closed
	data      []byte        // read, not yet a whole message
	past      []byte        // the last that was read before data
	typing    string        // typed since the last newline
	skipping  bool          // typing was too long and has been counted
	pending   []line        // typed, not yet answered
	greeted   bool          // the first prompt has come
	address   string        // of its validator; empty: none yet
	stake     int64
	tries     int       // at a stake, so far
	open      *open     // its proposal in the open round
	next      int       // index of the block whose winner is announced next; 0: not known
	unplaced  []string  // the winners announced while next was not known
	lastChain time.Time // when the last broadcast came
	wordless  bool      // a message without a prompt has come
	last      bool      // the last words have come
	dismissed bool      // they were those of the server's end
	over      bool      // the connection is at its end
	broken    bool      // a check has failed: read no more into it

	// What the member did.
	hungUp    bool // closed it
	halfClose bool // ended its input
	slow      bool // has next to no room for what it has not read
	late      bool // did not read while the server ended
	stuck     bool // did not read for longer than a server's patience
	inDoubt   bool // at the end: what was not answered may still have been taken
}

// line is a line that was typed, as it counts: without the spaces around it.
type line struct {
	text    string
	tooLong bool
	typed   time.Time
}

// String is for failures.
func (l line) String() string { return l.text[:min(len(l.text), 60)] }

// open is a proposal in the open round.
type open struct {
	index, bpm int
	until      time.Time // the round cannot end before
}

// connect opens a terminal to the server e. It is nil if that failed.
func (s *soak) connect(e *epoch, name string) *terminal {
	t := &terminal{soak: s, epoch: e, name: name, dialed: time.Now(),
		changed: make(chan struct{}, 1), finished: make(chan struct{})}
	conn, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		if !e.ending() && !errors.Is(err, syscall.EADDRNOTAVAIL) { // that is: too many of ours were closed lately
			s.fail("%s cannot connect: %v", name, err)
		}
		return nil
	}
	t.conn = conn.(*net.TCPConn)
	s.connections.Add(1)
	go t.listen()
	return t
}

// ---- What a member does ----

// newBPM is a pulse that nobody else types.
func (t *terminal) newBPM() int { return t.soak.ledger.newBPM(t) }

// send types s: lines, parts of lines, anything. That the connection is closed is not its matter.
func (t *terminal) send(s string) {
	t.mu.Lock()
	t.typing += s
	for {
		text, rest, ok := strings.Cut(t.typing, "\n")
		if !ok {
			if len(t.typing) > maxLine+1 && !t.skipping { // answered before its end
				t.enter(t.typing)
				t.skipping = true
			}
			break
		}
		if !t.skipping {
			t.enter(text)
		}
		t.typing, t.skipping = rest, false
	}
	t.mu.Unlock()
	t.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := t.conn.Write([]byte(s)); err != nil && !t.isOver() && isTimeout(err) {
		t.soak.fail("%s: the server does not read for %v", t.name, patience)
	}
}

// maxLine is how many bytes a line may hold.
const maxLine = 1024

// enter notes a line that is typed.
func (t *terminal) enter(text string) {
	text = strings.TrimSuffix(text, "\r")
	tooLong := len(text) > maxLine
	t.pending = append(t.pending, line{strings.TrimSpace(text[:min(len(text), maxLine)]), tooLong, time.Now()})
}

// endInput half-closes the connection.
func (t *terminal) endInput() {
	t.mu.Lock()
	if t.typing != "" && !t.skipping {
		t.enter(t.typing)
	}
	t.halfClose = true
	t.mu.Unlock()
	t.conn.CloseWrite()
}

// hangUp closes the connection, politely or with a reset.
func (t *terminal) hangUp(reset bool) {
	t.mu.Lock()
	t.hungUp = true
	t.mu.Unlock()
	if reset {
		t.conn.SetLinger(0)
	}
	t.conn.Close()
}

// stall does not read for d, or until cut is closed.
func (t *terminal) stall(d time.Duration, cut <-chan struct{}) {
	goOn := make(chan struct{})
	t.mu.Lock()
	t.pause = goOn
	t.stuck = t.stuck || d > serverPatience/2
	t.mu.Unlock()
	select {
	case <-time.After(d):
	case <-cut:
	case <-t.epoch.exited:
	}
	t.mu.Lock()
	t.pause = nil
	t.late = t.late || t.epoch.ending()
	t.mu.Unlock()
	close(goOn)
}

// narrow makes the terminal's system take little that it has not read: it gets what it
// is sent in drops, and may not have it all when the server has stopped.
func (t *terminal) narrow() {
	t.mu.Lock()
	t.slow = true
	t.mu.Unlock()
	t.conn.SetReadBuffer(4 << 10)
}

// idle reads for d, or until cut is closed or the connection is at its end.
func (t *terminal) idle(d time.Duration, cut <-chan struct{}) {
	select {
	case <-time.After(d):
	case <-cut:
	case <-t.finished:
	}
}

// answered waits until all that was typed is answered. It reports whether the
// conversation goes on.
func (t *terminal) answered() bool {
	return t.await("the answer to what was typed", func() bool { return t.greeted && len(t.pending) == 0 })
}

// decided waits until the round of its proposal is won. It reports whether the
// conversation goes on.
func (t *terminal) decided() bool {
	return t.await("the winner of the round", func() bool { return t.open == nil && len(t.pending) == 0 })
}

// informed waits for the next broadcast. It reports whether the conversation goes on.
func (t *terminal) informed() bool {
	now := time.Now()
	return t.await("a broadcast", func() bool { return t.lastChain.After(now) })
}

// dismissal waits for the end that the server makes.
func (t *terminal) dismissal() { t.await("the end of the connection", func() bool { return false }) }

// await waits for what, which has come when there is true. It fails after patience.
func (t *terminal) await(what string, there func() bool) bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		t.mu.Lock()
		over, ok := t.over, there()
		t.mu.Unlock()
		if over || ok {
			return !over
		}
		select {
		case <-t.changed:
		case <-limit.C:
			if !t.epoch.ending() {
				t.mu.Lock()
				t.fail(fmt.Errorf("%s has not come within %v", what, patience))
				t.mu.Unlock()
			}
			t.hangUp(true)
			return false
		}
	}
}

func (t *terminal) isOver() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

// ---- What it hears ----

// listen reads until the connection is at its end.
func (t *terminal) listen() {
	defer close(t.finished)
	buf := make([]byte, 16<<10)
	for {
		t.mu.Lock()
		pause := t.pause
		t.mu.Unlock()
		if pause != nil {
			<-pause
		}
		n, err := t.conn.Read(buf)
		t.mu.Lock()
		t.data = append(t.data, buf[:n]...)
		t.take(err != nil)
		if err != nil {
			t.finish(err)
		}
		t.mu.Unlock()
		select {
		case t.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// take takes the whole messages off what was read.
func (t *terminal) take(atEnd bool) {
	for len(t.data) > 0 && !t.broken {
		m, length, v := parse(t.data, atEnd, t.halfClose)
		if v == short {
			return
		}
		err := errors.New("this is no message of the contract")
		if v == whole {
			err = t.hear(m)
			t.soak.checks.Add(1)
		}
		if err != nil {
			t.fail(err)
			return
		}
		t.past = append(t.past[max(0, len(t.past)-600):], t.data[:length]...)
		t.data = t.data[length:]
	}
}

// hear checks a message against all that was before it.
func (t *terminal) hear(m message) error {
	// The prompt is the one that the terminal is at.
	want := stakePrompt
	if t.address != "" || m.kind == staked {
		want = bpmPrompt
	}
	switch m.kind {
	case goodbye, slashed, shuttingDown, full:
		want = noPrompt
	case won, broadcast:
		if t.halfClose && m.prompt == noPrompt {
			if want = noPrompt; t.open == nil {
				return errors.New("its input has ended and nothing of it is open, but it is told more")
			}
		} else if t.wordless {
			return errors.New("a prompt, but there was a message without one")
		}
	}
	switch {
	case m.prompt != want:
		return errors.New("the wrong prompt")
	case t.last:
		return errors.New("a message after the last words")
	case !t.greeted && m.kind != promptAlone && m.kind != full:
		return errors.New("a message before the first prompt")
	case t.wordless && m.kind != won && m.kind != broadcast && m.kind != shuttingDown:
		return errors.New("an answer after the end of its input was seen")
	}

	// An answer is the one to the oldest line that is not answered.
	var l line
	answers := m.kind != won && m.kind != broadcast && m.kind != shuttingDown && m.kind != full && m.kind != goodbye
	switch {
	case !answers:
	case !t.greeted:
		t.greeted = true
		return nil
	case len(t.pending) == 0:
		return errors.New("an answer, but all that was typed is answered")
	default:
		l = t.pending[0]
		t.pending = t.pending[1:]
		if want := t.answer(l); m.kind != want && (m.kind != alreadyProposed || want != proposed) {
			return fmt.Errorf("a wrong answer to %.60q", l.text)
		}
		if m.typed != "" && m.typed != quote(l.text) {
			return fmt.Errorf("%s was typed as %.60q", m.typed, l.text)
		}
	}

	ledger := t.soak.ledger
	switch m.kind {
	case staked:
		if strconv.FormatInt(m.tokens, 10) != number(l.text) {
			return fmt.Errorf("a stake of %d for %q", m.tokens, l.text)
		}
		t.address, t.stake = m.address, m.tokens
		return ledger.newValidator(t, m.address)
	case notStake:
		if t.tries++; t.tries > maxTries {
			return errors.New("one try too many")
		}
	case goodbye:
		t.last = true
		if t.tries != maxTries {
			return fmt.Errorf("goodbye after %d tries", t.tries)
		}
	case proposed:
		switch {
		case t.open != nil:
			return fmt.Errorf("accepted, but there is a proposal for block %d", t.open.index)
		case strconv.Itoa(m.bpm) != number(l.text):
			return fmt.Errorf("BPM %d for %q", m.bpm, l.text)
		case m.left > roundLength:
			return fmt.Errorf("a round of more than %v", roundLength)
		}
		t.open = &open{m.index, m.bpm, l.typed.Add(m.left - time.Millisecond)} // it was rounded
		t.soak.accepted.Add(1)
		if err := ledger.decide(t, m.bpm, accepted, m.index); err != nil {
			return err
		}
		return t.place(m.index)
	case alreadyProposed:
		switch {
		case t.open == nil:
			return errors.New("not accepted, but there is no proposal of it")
		case t.open.index != m.index || t.open.bpm != m.bpm:
			return fmt.Errorf("not accepted, but the first is %d for block %d", t.open.bpm, t.open.index)
		case m.left > roundLength:
			return fmt.Errorf("a round of more than %v", roundLength)
		}
		bpm, _ := strconv.Atoi(l.text)
		return ledger.decide(t, bpm, refused, 0)
	case slashed:
		t.last = true
		t.soak.slashes.Add(1)
		if t.open != nil {
			ledger.decide(t, t.open.bpm, void, t.open.index)
		}
		if m.tokens != t.stake {
			return fmt.Errorf("%d tokens forfeited of %d", m.tokens, t.stake)
		}
	case won:
		t.wordless = m.prompt == noPrompt
		t.soak.announcements.Add(1)
		return t.hearWinner(m)
	case broadcast:
		t.wordless = m.prompt == noPrompt
		now := time.Now()
		if t.lastChain.IsZero() && now.Sub(t.dialed) < broadcastEvery {
			return fmt.Errorf("a broadcast %v after it connected", now.Sub(t.dialed))
		}
		t.lastChain = now
		head, err := ledger.broadcast(m.chain)
		if err != nil {
			return err
		}
		t.soak.broadcasts.Add(1)
		return t.place(head + 1)
	case shuttingDown:
		t.last, t.dismissed = true, true
		switch {
		case !t.epoch.stopping.Load():
			return errors.New("nobody has stopped the server")
		case t.open != nil:
			return fmt.Errorf("the winner of block %d was not announced", t.open.index)
		}
	case full:
		t.last = true
		t.soak.full.Add(1)
		if t.greeted {
			return errors.New("there was room before")
		}
	}
	return nil
}

// answer is the kind of message that answers l.
func (t *terminal) answer(l line) kind {
	n, err := strconv.ParseInt(l.text, 10, 64)
	switch isNumber := err == nil && !l.tooLong; {
	case l.text == "" && !l.tooLong:
		return promptAlone
	case t.address == "" && isNumber && n > 0:
		return staked
	case t.address == "":
		return notStake
	case isNumber && n >= 0:
		return proposed
	}
	return slashed
}

// hearWinner checks a winner: it is the next one, and who won knows it.
func (t *terminal) hearWinner(m message) error {
	if t.next == 0 {
		t.unplaced = append(t.unplaced, m.address)
	} else {
		if t.open != nil && t.open.index != t.next {
			return fmt.Errorf("this is the winner of block %d, but its proposal is for block %d", t.next, t.open.index)
		}
		if err := t.soak.ledger.announced(t, t.next, m.address); err != nil {
			return err
		}
		if m.index != 0 && m.index != t.next {
			return fmt.Errorf("forged block %d, but this is the winner of block %d", m.index, t.next)
		}
		t.next++
	}
	own := t.open != nil && m.address == t.address
	switch {
	case t.open != nil && time.Now().Before(t.open.until) && !t.epoch.stopping.Load():
		return fmt.Errorf("the round ended %v earlier than it was told", time.Until(t.open.until))
	case own && m.index != t.open.index:
		return fmt.Errorf("it won block %d with BPM %d but is not told so", t.open.index, t.open.bpm)
	case !own && m.index != 0:
		return errors.New("it forged a block for which it has no proposal")
	case !own && m.address == t.address:
		return errors.New("it won without a proposal")
	}
	t.open = nil
	return nil
}

// place takes note that the next winner announced is that of block index, and with
// that, which blocks the winners before it won.
func (t *terminal) place(index int) error {
	if t.next != 0 && t.next != index {
		return fmt.Errorf("the next block is %d, but after all that was announced it is %d", index, t.next)
	}
	t.next = index
	for i, address := range t.unplaced {
		if err := t.soak.ledger.announced(t, index-len(t.unplaced)+i, address); err != nil {
			return err
		}
	}
	t.unplaced = nil
	return nil
}

// finish judges how the connection ended.
func (t *terminal) finish(err error) {
	e := t.epoch
	t.over = true
	t.conn.Close()
	switch {
	case t.broken:
		t.inDoubt = true
	case t.last:
		if err != io.EOF && !t.hungUp && !t.late && !t.slow && !e.killed.Load() {
			t.fail(fmt.Errorf("after the last words, not the end of what the server says but %w", err))
		}
	case t.hungUp, e.killed.Load(), e.stopping.Load() && (t.late || t.slow || !t.greeted), t.stuck:
		t.inDoubt = true
	case t.halfClose && err == io.EOF && t.open == nil && len(t.pending) == 0 && len(t.data) == 0:
	default:
		select {
		case <-e.exited:
		case <-time.After(time.Second):
		}
		t.inDoubt = true
		if !e.crashed.Load() { // that is reported, once
			t.fail(fmt.Errorf("the server ended the connection without a reason: %w", err))
		}
	}
	if !t.inDoubt {
		for _, l := range t.pending {
			if bpm, err := strconv.Atoi(l.text); err == nil {
				t.soak.ledger.decide(t, bpm, refused, 0)
			}
		}
	} else if t.open != nil && len(t.pending) > 0 {
		t.soak.ledger.decide(t, t.open.bpm, doubtful, t.open.index)
	}
	e.mu.Lock()
	e.ended = append(e.ended, t)
	e.mu.Unlock()
}

// fail reports err with all that is known of the terminal. The caller holds mu.
func (t *terminal) fail(err error) {
	if t.broken {
		return
	}
	t.broken = true
	proposal := "none"
	if t.open != nil {
		proposal = fmt.Sprintf("BPM %d for block %d", t.open.bpm, t.open.index)
	}
	t.soak.fail("%s (epoch %d, %s, connected %v ago, next block %d, proposal: %s, input ended: %v): %v\n"+
		"  not answered: %q\n  read before: %q\n  read now: %q", t.name, t.epoch.number, t.epoch.fate(),
		time.Since(t.dialed).Round(time.Millisecond), t.next, proposal, t.halfClose, err,
		t.pending[:min(len(t.pending), 5)], t.past, t.data[:min(len(t.data), 1000)])
}

// number is text without leading zeros.
func number(text string) string {
	if n := strings.TrimLeft(text, "0"); n != "" {
		return n
	}
	return "0"
}

// quote quotes text as the contract has it: like Go's %q, cut at 40 characters.
func quote(text string) string {
	characters := 0
	for i := range text {
		if characters++; characters > 40 {
			text = text[:i]
			break
		}
	}
	return strconv.Quote(text)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

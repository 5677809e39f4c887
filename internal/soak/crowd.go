package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// crowd is the people at the terminals. Each member connects, plays a part, leaves one
// way or another, and comes back.
type crowd struct {
	soak    *soak
	members sync.WaitGroup
	cut     chan struct{} // closed when everybody is to leave
	calls   uint64        // how often it was called together
}

// call lets size members come. Their choices come from the seed.
func (c *crowd) call(size int) {
	c.cut = make(chan struct{})
	c.calls++
	for i := range size {
		m := &member{soak: c.soak, cut: c.cut, name: fmt.Sprintf("member %d.%d", c.calls, i),
			r: rand.New(rand.NewPCG(c.soak.seed, c.calls<<32|uint64(i)))}
		c.members.Go(m.live)
	}
}

// dismiss has everybody leave, and waits until they have.
func (c *crowd) dismiss() {
	close(c.cut)
	c.members.Wait()
}

// member is one of the crowd.
type member struct {
	soak *soak
	r    *rand.Rand
	cut  <-chan struct{}
	name string
}

// live plays one part after the other.
func (m *member) live() {
	m.wait(m.upTo(time.Second)) // they do not all come at once
	for n := 0; ; n++ {
		e := m.soak.join(m.cut)
		if e == nil {
			return
		}
		part := m.choose()
		if t := m.soak.connect(e, fmt.Sprintf("%s, part %d (%s)", m.name, n, part.name)); t != nil {
			part.play(m, t)
			if !t.isOver() {
				t.hangUp(m.chance(30))
			}
			<-t.finished
		}
		e.terminals.Done()
		m.wait(m.upTo(500 * time.Millisecond))
	}
}

// part is what a member does with one connection.
type part struct {
	name   string
	weight int
	play   func(*member, *terminal)
}

var parts = []part{
	{"player", 30, (*member).player},
	{"paster", 10, (*member).paster},
	{"piper", 12, (*member).piper},
	{"stutterer", 8, (*member).stutterer},
	{"typist", 5, (*member).typist},
	{"browser", 3, (*member).browser},
	{"noise", 6, (*member).noise},
	{"long lines", 6, (*member).longLines},
	{"spectator", 8, (*member).spectator},
	{"knocker", 5, (*member).knocker},
	{"staller", 8, (*member).staller},
	{"vanisher", 10, (*member).vanisher},
	{"sleeper", 1, (*member).sleeper},
}

// choose picks a part by weight.
func (m *member) choose() part {
	total := 0
	for _, p := range parts {
		total += p.weight
	}
	ticket := m.r.IntN(total)
	for _, p := range parts {
		if ticket -= p.weight; ticket < 0 {
			return p
		}
	}
	panic("unreachable")
}

// ---- Parts ----

// player stakes and proposes, round after round, as a person does, if not as slow.
func (m *member) player(t *terminal) {
	if m.chance(80) && !t.answered() { // a person waits for the prompt
		return
	}
	t.send(m.stakeLine())
	if m.chance(80) && !t.answered() {
		return
	}
	for range 1 + m.r.IntN(8) {
		t.send(m.bpmLine(t))
		if m.chance(20) {
			t.send(m.bpmLine(t)) // twice in a round, most likely
		}
		if m.chance(20) {
			t.send(m.emptyLine())
		}
		if !t.answered() || !t.decided() {
			return
		}
		if m.chance(50) {
			t.idle(m.upTo(200*time.Millisecond), m.cut)
		}
		if m.over() {
			break
		}
	}
	m.leave(t)
}

// paster types many lines at once.
func (m *member) paster(t *terminal) {
	lines := m.stakeLine()
	n := 1 + m.r.IntN(12)
	if m.chance(5) {
		n = 150 // slowed down by the server
	}
	for range n {
		if m.chance(10) {
			lines += m.emptyLine()
		}
		lines += m.bpmLine(t)
	}
	if m.chance(20) {
		lines += m.badBPM() + "\n" + m.bpmLine(t) // the last is not answered
	}
	t.send(lines)
	if t.answered() {
		m.leave(t)
	}
}

// piper is printf '100\n72\n' | nc -N localhost 9000.
func (m *member) piper(t *terminal) {
	lines := m.stakeLine()
	for range m.r.IntN(4) {
		lines += m.bpmLine(t)
	}
	if m.chance(50) {
		lines = strings.TrimRight(lines, "\r\n") // a last line without a newline
	}
	t.send(lines)
	t.endInput()
	t.dismissal()
}

// stutterer does not find a stake, or not at once.
func (m *member) stutterer(t *terminal) {
	for range 1 + m.r.IntN(4) {
		t.send(m.badStake() + m.newline())
		if m.chance(30) {
			t.send(m.emptyLine())
		}
		if m.chance(60) && !t.answered() {
			t.dismissal()
			return
		}
	}
	if m.chance(60) && t.answered() {
		m.player(t)
		return
	}
	m.leave(t)
}

// typist types character by character, and reads what comes in between.
func (m *member) typist(t *terminal) {
	for _, character := range m.stakeLine() + m.bpmLine(t) + m.emptyLine() + m.bpmLine(t) {
		t.send(string(character))
		t.idle(m.upTo(30*time.Millisecond), m.cut)
	}
	if t.answered() {
		m.leave(t)
	}
}

// browser speaks HTTP.
func (m *member) browser(t *terminal) {
	t.send("GET / HTTP/1.1\r\nHost: localhost:9000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n")
	t.dismissal()
}

// noise sends bytes of any value, before or after it has staked.
func (m *member) noise(t *terminal) {
	if m.chance(50) {
		t.send(m.stakeLine() + m.bpmLine(t))
	}
	noise := make([]byte, m.r.IntN(3000))
	for i := range noise {
		if noise[i] = byte(m.r.Uint32()); '0' <= noise[i] && noise[i] <= '9' || noise[i] == '\r' {
			noise[i] = 0xff // no number, by accident that of another
		}
	}
	t.send(string(noise) + "\nnoise\n")
	if t.answered() {
		m.leave(t)
	}
}

// longLines types lines that are as long as can be, and longer.
func (m *member) longLines(t *terminal) {
	pad := func(s string, n int) string { return strings.Repeat("0", max(0, n-len(s))) + s }
	t.send(pad("100", maxLine) + m.newline()) // a stake, if an odd one
	t.send(pad(strconv.Itoa(t.newBPM()), maxLine) + m.newline())
	if !t.answered() {
		return
	}
	switch m.r.IntN(4) {
	case 0:
		t.send(pad(strconv.Itoa(t.newBPM()), maxLine+1) + "\n") // no pulse
	case 1:
		t.send(strings.Repeat("long ", 300+m.r.IntN(1000)) + m.newline())
	case 2:
		t.send(strings.Repeat("endless", 300)) // without a newline
	default:
		m.leave(t)
		return
	}
	t.dismissal()
}

// spectator says nothing, or nothing more than a stake, and hears everything.
func (m *member) spectator(t *terminal) {
	if m.chance(30) {
		t.send(m.stakeLine())
	}
	if !t.answered() {
		return
	}
	t.idle(time.Second+m.upTo(15*time.Second), m.cut)
	if t.informed() && m.chance(50) {
		m.leave(t)
	}
}

// knocker connects and closes at once.
func (m *member) knocker(t *terminal) { t.hangUp(m.chance(50)) }

// staller does not read for a while, less than the server puts up with.
func (m *member) staller(t *terminal) {
	if m.chance(50) {
		t.narrow()
	}
	t.send(m.stakeLine() + m.bpmLine(t))
	if !t.answered() {
		return
	}
	for range 5 {
		t.send(m.bpmLine(t))
	}
	t.stall(m.upTo(serverPatience/2), m.cut)
	if t.answered() {
		m.leave(t)
	}
}

// sleeper does not read for so long that the server may cut it off.
func (m *member) sleeper(t *terminal) {
	t.narrow()
	t.send(m.stakeLine() + m.bpmLine(t))
	t.stall(serverPatience/2+m.upTo(2*serverPatience), m.cut)
}

// vanisher is gone in the middle of something.
func (m *member) vanisher(t *terminal) {
	if m.chance(30) && !t.answered() {
		return
	}
	t.send(m.stakeLine())
	if m.chance(50) {
		t.idle(m.upTo(50*time.Millisecond), m.cut)
	}
	for range m.r.IntN(4) {
		t.send(m.bpmLine(t))
	}
	if m.chance(30) {
		t.send(m.badBPM() + "\n")
	}
	if m.chance(30) {
		t.endInput()
	}
	if m.chance(50) {
		t.idle(m.upTo(100*time.Millisecond), m.cut)
	}
	t.hangUp(m.chance(50))
}

// leave is one of the ways to end a conversation with a validator, or before there is one.
func (m *member) leave(t *terminal) {
	t.mu.Lock()
	isValidator := t.address != ""
	t.mu.Unlock()
	switch m.r.IntN(6) {
	case 0: // end of input after a proposal: it hears how that fares
		if isValidator {
			t.send(m.bpmLine(t))
		}
		t.endInput()
		t.dismissal()
	case 1: // end of input: closed when the open round, if any, is won
		t.endInput()
		t.dismissal()
	case 2: // slashed, perhaps with a proposal, perhaps with more to say
		if !isValidator {
			return
		}
		if m.chance(70) {
			t.send(m.bpmLine(t))
		}
		if m.chance(30) && !t.answered() {
			return
		}
		t.send(m.badBPM() + "\n")
		if m.chance(30) {
			t.send(m.bpmLine(t))
		}
		t.dismissal()
	case 3:
		if isValidator {
			t.send(m.bpmLine(t)) // it stands
		}
		t.hangUp(m.chance(50))
	default:
		t.hangUp(m.chance(50))
	}
}

// ---- What they type ----

func (m *member) stakeLine() string {
	stake := "1"
	switch {
	case m.chance(3):
		stake = "9223372036854775807" // two of these pass 64 bits
	case m.chance(90):
		stake = strconv.Itoa(1 + m.r.IntN(1000))
	}
	return m.spaced(stake) + m.newline()
}

func (m *member) bpmLine(t *terminal) string {
	return m.spaced(strconv.Itoa(t.newBPM())) + m.newline()
}

// spaced is a number as somebody may type it.
func (m *member) spaced(n string) string {
	switch m.r.IntN(10) {
	case 0:
		return "  " + n + "\t "
	case 1:
		return "00" + n
	}
	return n
}

func (m *member) newline() string {
	if m.chance(25) {
		return "\r\n"
	}
	return "\n"
}

func (m *member) emptyLine() string { return m.pick("", " ", "\t") + m.newline() }

func (m *member) badStake() string {
	return m.pick("0", "-5", "9223372036854775808", "99999999999999999999999999", m.garbage())
}

func (m *member) badBPM() string { return m.pick("-1", m.garbage(), m.garbage()) }

// garbage is no number at all.
func (m *member) garbage() string {
	return m.pick("help", "72 bpm", "1.5", "1e3", "0x10", "1_000", "12,5", "\"quoted\"", "\x1b[2J\x1b[H", "\a\x00",
		"سبعون", "７２", "💓💓", strings.Repeat("💓", 41), strings.Repeat("é", 40), "\xff\xfe", "a\rb", "%s%n", `\`,
		"\nEnter a new BPM:"[1:], "[{\"Index\":0}]", strings.Repeat("x", 41), strings.Repeat("y", maxLine+1),
		"line\u2028separator", strings.Repeat("\x80", 60))
}

// ---- Chances ----

func (m *member) chance(percent int) bool            { return m.r.IntN(100) < percent }
func (m *member) upTo(d time.Duration) time.Duration { return upTo(m.r, d) }
func (m *member) pick(of ...string) string           { return of[m.r.IntN(len(of))] }

// upTo is a random time below d.
func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

// over reports whether everybody is to leave.
func (m *member) over() bool {
	select {
	case <-m.cut:
		return true
	default:
		return false
	}
}

// wait waits for d, or until everybody is to leave.
func (m *member) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-m.cut:
	}
}

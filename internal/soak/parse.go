package main

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The messages of the contract, strictly: what a terminal reads must be a
// sequence of these and nothing else, to the byte.

type kind int

const (
	promptAlone kind = iota // the greeting, or the answer to an empty line
	staked
	notStake
	goodbye
	proposed
	alreadyProposed
	slashed
	won
	broadcast
	shuttingDown
	full
)

// prompt is the question at the end of a message.
type prompt int

const (
	noPrompt prompt = iota
	stakePrompt
	bpmPrompt
)

const (
	stakePromptText = "Enter token balance:"
	bpmPromptText   = "\nEnter a new BPM:"
)

// message is one message, with what stands for a value in it.
type message struct {
	kind    kind
	prompt  prompt
	address string        // of staked and won
	tokens  int64         // of staked and slashed
	index   int           // of a proposal; of won, the block that "you" forged, or 0
	bpm     int           // of a proposal
	typed   string        // what was typed, still quoted
	left    time.Duration // of a proposal: until the round ends
	chain   []byte        // of a broadcast: what is between the brackets
}

// verdict is how parsing went.
type verdict int

const (
	whole verdict = iota // a message
	short                // the beginning of one
	bad                  // no message, and none can become of it
)

// heads is how each kind of message begins. None is the beginning of another.
var heads = []struct {
	text string
	kind kind
}{
	{stakePromptText, promptAlone},
	{bpmPromptText, promptAlone},
	{"\nyou are validator ", staked},
	{"\n\"", notStake},
	{"\ntoo many tries, goodbye\n", goodbye},
	{"\nblock ", proposed},
	{"\nslashed: ", slashed},
	{"\nwinning validator: ", won},
	{"\n[", broadcast},
	{"\nthe server is shutting down\n", shuttingDown},
	{"the server is full, try again later\n", full},
}

// cursor walks over bytes; after the first step that fails, the others do nothing.
type cursor struct {
	b       []byte
	i       int
	verdict verdict
	atEnd   bool // nothing comes after b
	ended   bool // the terminal has ended its input: a prompt may be missing
}

// parse takes the first message off b and says how long it is.
func parse(b []byte, atEnd, ended bool) (m message, length int, v verdict) {
	c := &cursor{b: b, atEnd: atEnd, ended: ended, verdict: bad}
	for _, head := range heads {
		if v := c.match(head.text); v != bad {
			c.verdict, m.kind = v, head.kind
			break
		}
	}
	if c.verdict != whole {
		return m, 0, c.verdict
	}
	switch m.kind {
	case promptAlone:
		m.prompt = c.prompt()
	case staked:
		c.i += len("\nyou are validator ")
		m.address = c.address()
		c.text(" with ")
		m.tokens = c.number()
		c.text(" tokens staked\n")
		m.prompt = c.prompt()
	case notStake:
		c.i++
		m.typed = c.quoted()
		c.text(" is not a stake: ")
		c.reason()
		m.prompt = c.prompt()
	case goodbye:
		c.text("\ntoo many tries, goodbye\n")
	case proposed:
		c.text("\nblock ")
		m.index = int(c.number())
		if c.verdict == whole && c.match(" is") != bad {
			m.kind = alreadyProposed
			c.text(" is already proposed with BPM ")
			m.bpm = int(c.number())
			c.text("; the next round opens in ")
		} else {
			c.text(" proposed with BPM ")
			m.bpm = int(c.number())
			c.text("; the winner is drawn in ")
		}
		m.left = c.duration()
		c.text("\n")
		m.prompt = c.prompt()
	case slashed:
		c.text("\nslashed: ")
		m.typed = c.quoted()
		c.text(" is not a pulse; ")
		m.tokens = c.number()
		c.text(" tokens forfeited\n")
	case won:
		c.text("\nwinning validator: ")
		m.address = c.address()
		c.text("\n")
		if rest := c.rest(); c.verdict == whole && len(rest) > 0 && rest[0] == 'y' {
			c.text("you forged block ")
			m.index = int(c.number())
			c.text("\n")
		}
		m.prompt = c.prompt()
	case broadcast:
		c.text("\n[")
		m.chain = c.until("\n")
		if n := len(m.chain); c.verdict == whole && (n == 0 || m.chain[n-1] != ']') {
			c.verdict = bad
		} else if c.verdict == whole {
			m.chain = m.chain[:n-1]
		}
		c.text("\n")
		m.prompt = c.prompt()
	case shuttingDown:
		c.text("\nthe server is shutting down\n")
	case full:
		c.text("the server is full, try again later\n")
	}
	return m, c.i, c.verdict
}

func (c *cursor) rest() []byte { return c.b[c.i:] }

// match compares what comes with text, without a step.
func (c *cursor) match(text string) verdict {
	rest := c.rest()
	switch {
	case bytes.HasPrefix(rest, []byte(text)):
		return whole
	case strings.HasPrefix(text, string(rest[:min(len(rest), len(text))])):
		return short
	}
	return bad
}

// text steps over exactly text.
func (c *cursor) text(text string) {
	if c.verdict != whole {
		return
	}
	if c.verdict = c.match(text); c.verdict == whole {
		c.i += len(text)
	}
}

// take steps over bytes that are right, min to max of them, up to one that is not.
func (c *cursor) take(min, max int, right func(byte) bool) string {
	if c.verdict != whole {
		return ""
	}
	rest, n := c.rest(), 0
	for n < len(rest) && n < max && right(rest[n]) {
		n++
	}
	switch {
	case n == len(rest) && n < max:
		c.verdict = short
	case n < min:
		c.verdict = bad
	}
	c.i += n
	return string(rest[:n])
}

// until steps to the first stop and returns what is before it: printable ASCII.
func (c *cursor) until(stop string) []byte {
	if c.verdict != whole {
		return nil
	}
	rest := c.rest()
	end := bytes.Index(rest, []byte(stop))
	text := rest
	if end < 0 {
		c.verdict = short
	} else {
		text = rest[:end]
	}
	for _, b := range text {
		if b < ' ' || b > '~' {
			c.verdict = bad
		}
	}
	c.i += len(text)
	return text
}

func (c *cursor) address() string {
	return c.take(64, 64, func(b byte) bool { return '0' <= b && b <= '9' || 'a' <= b && b <= 'f' })
}

// number is a whole number as Go prints it.
func (c *cursor) number() int64 {
	digits := c.take(1, 19, func(b byte) bool { return '0' <= b && b <= '9' })
	if c.verdict != whole {
		return 0
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != digits {
		c.verdict = bad
	}
	return n
}

var durations = regexp.MustCompile(`^(0s|[1-9][0-9]{0,2}ms|[1-9][0-9]*s|[1-9][0-9]*m[0-9]+s)$`)

func (c *cursor) duration() time.Duration {
	text := c.take(2, 20, func(b byte) bool { return b != '\n' })
	if c.verdict != whole {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || !durations.MatchString(text) {
		c.verdict = bad
	}
	return d
}

// quoted is a string in Go's quotes, which stay.
func (c *cursor) quoted() string {
	escaped, quotes := false, 0
	text := c.take(1, 500, func(b byte) bool {
		switch {
		case quotes == 2 || b < ' ':
			return false
		case escaped:
			escaped = false
		case b == '\\':
			escaped = true
		case b == '"':
			quotes++
		case quotes == 0:
			return false
		}
		return true
	})
	if c.verdict == whole && quotes != 2 {
		c.verdict = bad
	}
	return text
}

// reason is why something is wrong: a few words on one line.
func (c *cursor) reason() {
	c.take(1, 100, func(b byte) bool { return ' ' <= b && b <= '~' })
	c.text("\n")
}

// prompt is one of the prompts, or none if the terminal has ended its input.
func (c *cursor) prompt() prompt {
	if c.verdict != whole {
		return noPrompt
	}
	stake, bpm := c.match(stakePromptText), c.match(bpmPromptText)
	switch {
	case stake == whole:
		c.i += len(stakePromptText)
		return stakePrompt
	case bpm == whole:
		c.i += len(bpmPromptText)
		return bpmPrompt
	case len(c.rest()) == 0 && c.atEnd && c.ended:
	case stake == short || bpm == short:
		c.verdict = short
	case !c.ended:
		c.verdict = bad
	}
	return noPrompt
}

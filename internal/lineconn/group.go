package lineconn

import (
	"container/list"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Group is the connections that hear of the same things. Each has a prompt, the
// question its peer is at, which follows whatever it is told. A Group has one
// owner, who alone sets the prompts of its members; a member's reader may Tell and
// Ask as long as the owner does not set its prompt meanwhile. No method of a Group waits.
type Group struct {
	// Due rings when Broadcast has somebody to send to.
	Due *time.Timer

	every   time.Duration
	members *list.List // of *Conn, in the order in which their broadcasts are due
}

// membership is a Conn's place in its group, and its owner's.
type membership struct {
	prompt string
	place  *list.Element // nil: in no group
	due    time.Time     // of the next broadcast
}

// NewGroup makes a group whose members are sent a broadcast once in every, each
// counted from when it was added.
func NewGroup(every time.Duration) *Group {
	return &Group{Due: time.NewTimer(every), every: every, members: list.New()}
}

// Add makes c a member.
func (g *Group) Add(c *Conn) {
	c.due = time.Now().Add(g.every)
	c.place = g.members.PushBack(c)
	if g.members.Len() == 1 {
		g.Due.Reset(g.every)
	}
}

// Remove ends c's membership and reports whether it had one.
func (g *Group) Remove(c *Conn) bool {
	if c.place == nil {
		return false
	}
	g.members.Remove(c.place)
	c.place = nil
	return true
}

// Announce tells every member but except text, then its prompt.
func (g *Group) Announce(text string, except *Conn) {
	message := prompted([][]byte{[]byte(text)}, false)
	// All are queued before the first is written to, so that the first and the last hear it close together.
	ready := make([]*Conn, 0, g.members.Len())
	for e := g.members.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*Conn); c != except && c.queueUp(message(c.prompt)) {
			ready = append(ready, c)
		}
	}
	if len(ready) > 0 {
		ready[0].writers.start(ready) // one crew serves them all
	}
}

// Broadcast tells the members for whom it is time what parts make up, then
// their prompts. It replaces an older broadcast that a member has not been sent
// any of yet.
func (g *Group) Broadcast(parts ...[]byte) {
	now := time.Now()
	message := prompted(parts, true)
	for e := g.members.Front(); e != nil; e = g.members.Front() {
		c := e.Value.(*Conn)
		if c.due.After(now) {
			g.Due.Reset(c.due.Sub(now))
			return
		}
		c.Send(message(c.prompt))
		c.due = now.Add(g.every)
		g.members.MoveToBack(e)
	}
}

// Dismiss sends every member its last words and finishes with it.
func (g *Group) Dismiss(words string) {
	m := Text(words)
	for e := g.members.Front(); e != nil; e = g.members.Front() {
		c := e.Value.(*Conn)
		c.Send(m)
		c.Finish()
		g.Remove(c)
	}
}

// prompted returns a function that makes messages of parts and a prompt: one
// message for each prompt, however many connections are sent it, and one copy of the
// parts, of all but the last, for them all.
func prompted(parts [][]byte, replaceable bool) func(prompt string) *Message {
	made := map[string]*Message{}
	return func(prompt string) *Message {
		m := made[prompt]
		if m == nil {
			m = &Message{Parts: slices.Clone(parts), Replaceable: replaceable}
			last := &m.Parts[len(parts)-1]
			*last = slices.Concat(*last, []byte(prompt))
			made[prompt] = m
		}
		return m
	}
}

// SetPrompt makes prompt what follows whatever c is told from now on.
func (c *Conn) SetPrompt(prompt string) { c.prompt = prompt }

// Tell sends c a text, formatted as by fmt.Sprintf, then its prompt.
func (c *Conn) Tell(format string, args ...any) {
	c.Send(Text(fmt.Sprintf(format, args...) + c.prompt))
}

// Ask returns the next line that is not empty, without the spaces around it, once
// the peer has taken all that it was told; an empty line gets the prompt again.
// It fails as ReadLine does.
func (c *Conn) Ask() (typed string, err error) {
	for {
		c.Flush()
		typed, err = c.ReadLine()
		typed = strings.TrimSpace(typed)
		if typed != "" || err != nil {
			return typed, err
		}
		c.Send(Text(c.prompt))
	}
}

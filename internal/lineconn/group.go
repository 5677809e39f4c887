package lineconn

import (
	"container/list"
	"slices"
	"sync"
	"time"
)

// A message is what is written as a whole. Connections may share one and its bytes: nobody changes them.
type message struct {
	parts       [][]byte
	cost        int  // what it counts of MaxWaiting
	replaceable bool // dropped if another one is queued before it is begun to be written
}

// A Notice is a text for many peers. With each prompt that follows it, it is made up once, and shared by all who are
// at that prompt.
type Notice struct {
	message // without a prompt

	mu   sync.Mutex
	made map[string]*message // by prompt
}

// joined is up to how many bytes are joined, so that a peer gets them with its prompt in one write.
const joined = 16 << 10

// NewNotice makes a notice of a text in parts, whose bytes nobody changes any more.
func NewNotice(parts ...[]byte) *Notice {
	n := &Notice{message: message{parts: parts, cost: messageCost}, made: map[string]*message{}}
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size <= joined {
		n.parts = [][]byte{slices.Concat(parts...)}
		n.cost += size
	}
	return n
}

// before returns the message of n and a prompt.
func (n *Notice) before(prompt string) *message {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.made[prompt]
	if m == nil {
		m = &message{parts: slices.Clone(n.parts), cost: n.cost + len(prompt), replaceable: n.replaceable}
		if last := &m.parts[len(m.parts)-1]; len(*last) <= joined {
			*last = slices.Concat(*last, []byte(prompt))
		} else {
			m.parts = append(m.parts, []byte(prompt))
		}
		if m.replaceable {
			m.cost = 0
		}
		n.made[prompt] = m
	}
	return m
}

// Group is the connections that hear of the same things. Each has a prompt, the question its peer is at, which follows
// whatever it is told. A Group has one owner, who alone sets the prompts of its members; others may Tell and Show a
// member something as long as the owner does not set its prompt meanwhile. No method of a Group waits.
type Group struct {
	Due     *time.Timer // rings when Broadcast has somebody to send to
	every   time.Duration
	members *list.List // of *Conn, in the order in which their broadcasts are due
}

// NewGroup makes a group whose members are sent a broadcast once in every, each counted from when it was added.
func NewGroup(every time.Duration) *Group {
	return &Group{Due: time.NewTimer(every), every: every, members: list.New()}
}

// SetPrompt makes prompt what follows whatever c is told from now on.
func (c *Conn) SetPrompt(prompt string) { c.prompt = prompt }

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

// Announce shows the notice to every member but except.
func (g *Group) Announce(n *Notice, except *Conn) {
	// All are queued before the first is written to, so that the first and the last hear it close together.
	ready := make([]*Conn, 0, g.members.Len())
	for e := g.members.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*Conn); c != except && c.queueUp(n.before(c.prompt), false) {
			ready = append(ready, c)
		}
	}
	if len(ready) > 0 {
		ready[0].writers.start(ready) // one crew serves them all
	}
}

// Broadcast shows the notice, a status, to the members for whom it is time.
func (g *Group) Broadcast(n *Notice) {
	now := time.Now()
	for e := g.members.Front(); e != nil; e = g.members.Front() {
		c := e.Value.(*Conn)
		if c.due.After(now) {
			g.Due.Reset(c.due.Sub(now))
			return
		}
		c.Show(n)
		c.due = now.Add(g.every)
		g.members.MoveToBack(e)
	}
}

// EndAll has every member leave, with these last words.
func (g *Group) EndAll(words string) {
	for e := g.members.Front(); e != nil; e = g.members.Front() {
		c := e.Value.(*Conn)
		g.Remove(c)
		c.End(words)
	}
}

// Feed is the newest of a growing sequence of texts, as a status: a notice of which only the newest waits for a peer. Bytes
// once stored never change, so that all statuses, also those on their way to slow peers, share them. It has one owner.
type Feed struct {
	open, end string
	limit     int    // texts in a status; 0: all
	texts     []byte // those, a comma behind each
	sizes     []int  // of each, with its comma
	status    *Notice
}

// NewFeed is a feed of which a status shows the newest limit texts, 0: all, a comma between two, after open and before end.
func NewFeed(open, end string, limit int) *Feed { return &Feed{open: open, end: end, limit: limit} }

// Add appends text, which it copies. Only once in about limit texts are the others copied again, so that the older ones
// can go.
func (f *Feed) Add(text []byte) {
	if f.limit > 0 && len(f.sizes) == f.limit {
		f.texts, f.sizes = f.texts[f.sizes[0]:], f.sizes[1:]
		if len(f.texts)+len(text) >= cap(f.texts) {
			f.texts = slices.Grow(f.texts, len(f.texts)+len(text)+1)
		}
	}
	f.texts = append(append(f.texts, text...), ',')
	f.sizes = append(f.sizes, len(text)+1)
	f.status = nil
}

// Snapshot is the newest texts, of which there must be one. It is made once for all calls between two Adds.
func (f *Feed) Snapshot() *Notice {
	if f.status == nil {
		f.status = NewNotice([]byte(f.open), f.texts[:len(f.texts)-1], []byte(f.end))
		f.status.replaceable = true
	}
	return f.status
}

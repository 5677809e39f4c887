package lineconn

import (
	"runtime"
	"slices"
	"time"
)

// Group is a set of connections that get the same announcements and broadcasts. It has one owner, which alone sets the
// prompts of the members. No method of a Group waits for a peer.
type Group struct {
	Due     *time.Timer // fires when Broadcast has a member to send to
	every   time.Duration
	members []*Conn // in the order in which their broadcasts are due
}

// NewGroup returns a group whose members get a broadcast once per interval, counted from Add.
func NewGroup(every time.Duration) *Group { return &Group{Due: time.NewTimer(every), every: every} }

// SetPrompt makes prompt follow each text from now on, except the last message.
func (c *Conn) SetPrompt(prompt string) { c.prompt = prompt }

// Add makes c a member.
func (g *Group) Add(c *Conn) {
	c.due = time.Now().Add(g.every)
	g.members = append(g.members, c)
	if len(g.members) == 1 {
		g.Due.Reset(g.every)
	}
}

// Remove removes c from the group. It reports whether c was a member.
func (g *Group) Remove(c *Conn) bool {
	before := len(g.members)
	g.members = slices.DeleteFunc(g.members, func(member *Conn) bool { return member == c })
	return len(g.members) < before
}

// Announce shows a text to every member except one, which may be nil. All members at a prompt share one message, and
// there are as many writing goroutines as processors, which saves memory and time. The message is in all queues before
// the first write, so that members get it close together.
func (g *Group) Announce(text []byte, except *Conn) {
	byPrompt := map[string]*message{}
	ready := make(chan *Conn, len(g.members))
	for _, c := range g.members {
		if c == except {
			continue
		}
		if byPrompt[c.prompt] == nil {
			byPrompt[c.prompt] = newMessage(text, []byte(c.prompt))
		}
		if c.enqueue(byPrompt[c.prompt], false) {
			ready <- c
		}
	}
	close(ready)
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for c := range ready {
				c.write(false)
			}
		}()
	}
}

// Broadcast shows the snapshot of a feed to the members whose broadcasts are due.
func (g *Group) Broadcast(f *Feed) {
	now, parts := time.Now(), f.snapshot()
	for len(g.members) > 0 && !g.members[0].due.After(now) {
		c := g.members[0]
		m := newMessage(append(parts, []byte(c.prompt))...)
		m.cost = 0 // its texts are in memory anyway
		c.send(m, false)
		c.due = now.Add(g.every)
		g.members = append(g.members[1:], c)
	}
	if len(g.members) > 0 {
		g.Due.Reset(g.members[0].due.Sub(now))
	}
}

// EndAll removes every member and ends its connection with the same last message.
func (g *Group) EndAll(text string) {
	for _, c := range g.members {
		c.End(text)
	}
	g.members = nil
}

// Feed holds the newest texts of a growing sequence. Its snapshot is a text that shows them. Stored bytes are never
// changed or moved, so that snapshots share them: the texts are in memory only once. A Feed has one owner.
type Feed struct {
	open, end string
	limit     int      // number of texts in a snapshot; 0 means all
	pieces    [][]byte // the texts of the next snapshot, each followed by a comma and in one piece
	sizes     []int    // size of each text and its comma; empty if there is no limit
}

const pieceSize = 1 << 20 // bytes that a piece of a Feed takes, except one for a longer text

// NewFeed returns a feed whose snapshots show the newest limit texts, separated by commas, between open and end. A
// limit of 0 means all texts.
func NewFeed(open, end string, limit int) *Feed { return &Feed{open: open, end: end, limit: limit} }

// Add appends a copy of text.
func (f *Feed) Add(text []byte) {
	size, last := len(text)+1, len(f.pieces)-1
	if last < 0 || len(f.pieces[last])+size > cap(f.pieces[last]) {
		f.pieces = append(f.pieces, make([]byte, 0, max(pieceSize, size)))
		last++
	}
	f.pieces[last] = append(append(f.pieces[last], text...), ',')
	if f.limit > 0 {
		f.sizes = append(f.sizes, size)
	}
	if len(f.sizes) > f.limit {
		f.pieces[0], f.sizes = f.pieces[0][f.sizes[0]:], f.sizes[1:]
		if len(f.pieces[0]) == 0 {
			f.pieces = slices.Delete(f.pieces, 0, 1) // also frees its memory
		}
	}
}

// snapshot returns the parts of a text that shows the newest texts, of which there must be at least one.
func (f *Feed) snapshot() [][]byte {
	parts := slices.Concat([][]byte{[]byte(f.open)}, f.pieces, [][]byte{[]byte(f.end)})
	last := &parts[len(f.pieces)]
	*last = (*last)[:len(*last)-1] // without the last comma
	return slices.Clip(parts)      // so that each peer can append its prompt
}

package main

import (
	"time"
)

// The groups of rows.
const (
	groupJoin = iota
	groupMemory
	groupIdle
	groupAnnounce
	groupWork
	groupRest
)

const (
	// joining is how many terminals join at the same time where the rate is measured.
	joining = 256

	// waves is in how many parts they come, to take turns.
	waves = 5

	// tutorialMost is the most terminals for which the tutorial's way is measured: with
	// more, printing all validators whenever one joins takes it too long.
	tutorialMost = 1000
)

// contender is a side with its column of the table.
type contender struct {
	*side
	column func(*row) *sample
	rss    float64       // before its terminals came
	cpu    time.Duration // when it was last looked at
}

// newContenders starts the servers that n terminals are to compare.
func (b *bench) newContenders(n int) ([]*contender, error) {
	ours, err := b.ours()
	if err != nil {
		return nil, err
	}
	floor, err := b.floor(0)
	if err != nil {
		return nil, err
	}
	all := []*contender{
		{side: ours, column: func(r *row) *sample { return &r.ours }},
		{side: floor, column: func(r *row) *sample { return &r.floor }},
	}
	if n <= tutorialMost {
		tutorial, err := b.tutorial(200*time.Millisecond, time.Hour, 1)
		if err != nil {
			return nil, err
		}
		all = append(all, &contender{side: tutorial, column: func(r *row) *sample { return &r.tutorial }})
	}
	for _, c := range all {
		if c.rss, err = c.server.rss(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// used returns the processor time that the server has used since the last call.
func (c *contender) used() (time.Duration, error) {
	before := c.cpu
	var err error
	c.cpu, err = c.server.cpu()
	return c.cpu - before, err
}

// measureTerminals measures what n terminals cost when they join, idle and hear announcements.
func (b *bench) measureTerminals(n int) error {
	all, err := b.newContenders(n)
	if err != nil {
		return err
	}
	// turns has each contender do something, one after the other.
	turns := func(times int, do func(c *contender, i int) error) error {
		for i := range times {
			for _, c := range all {
				if err := do(c, i); err != nil {
					return err
				}
			}
		}
		return nil
	}

	join := row{group: groupJoin, what: "joining, terminals/s", terminals: n}
	err = turns(waves, func(c *contender, i int) error {
		count := (i+1)*n/waves - i*n/waves
		took, err := c.join(count, noOthers, joining)
		join := c.column(&join)
		*join = append(*join, float64(count)/took.Seconds())
		return err
	})
	if err != nil {
		return err
	}
	b.add(join, "join")

	// The first announcements also warm up what the later ones use.
	err = turns(3, func(c *contender, _ int) error {
		_, err := c.announced()
		return err
	})
	if err != nil {
		return err
	}

	idle := row{group: groupIdle, what: "idle processor time, % of a core", terminals: n}
	memory := row{group: groupMemory, what: "memory, KiB a terminal", terminals: n}
	if n == 19000 {
		memory.target, memory.atMost = ofOurs, 5
	}
	note := func(c *contender, _ int) error {
		_, err := c.used()
		return err
	}
	if err := turns(1, note); err != nil {
		return err
	}
	started := time.Now()
	if err := b.pause(pick(b, 4*time.Second, 500*time.Millisecond)); err != nil {
		return err
	}
	err = turns(1, func(c *contender, _ int) error {
		used, err := c.used()
		if err != nil {
			return err
		}
		*c.column(&idle) = sample{100 * used.Seconds() / time.Since(started).Seconds()}
		rss, err := c.server.rss()
		*c.column(&memory) = sample{(rss - c.rss) / 1024 / float64(n)}
		return err
	})
	if err != nil {
		return err
	}
	b.add(memory, "memory")
	b.add(idle, "idle")

	if !b.wants("announce") {
		return nil
	}
	announce := row{group: groupAnnounce, what: "announcement, ms", terminals: n, target: ofRatio, atMost: 1}
	work := row{group: groupWork, what: "the server's processor time for it, µs a terminal", terminals: n}
	times := pick(b, 21, 5)
	if err := turns(1, note); err != nil {
		return err
	}
	err = turns(times, func(c *contender, _ int) error {
		took, err := c.announced()
		c.column(&announce).milliseconds(took)
		return err
	})
	if err != nil {
		return err
	}
	err = turns(1, func(c *contender, _ int) error {
		used, err := c.used()
		*c.column(&work) = sample{float64(used.Microseconds()) / float64(n*times)}
		return err
	})
	b.add(announce, "announce")
	b.add(work, "announce")
	return err
}

package console

import (
	"bytes"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Everything written comes out in order, from the caller's buffer or a copy, until the Writer is closed.
func TestWriter(t *testing.T) {
	var out bytes.Buffer
	c := New(&out)
	want := ""
	for i := range 100 {
		buf := fmt.Appendf(nil, "line %d\n", i)
		want += string(buf)
		c.Write(buf)
		clear(buf)
	}
	c.Close(time.Minute)
	c.Write([]byte("late"))
	c.Close(time.Minute)
	if out.String() != want {
		t.Errorf("wrote %q", out.String())
	}
}

// A console that accepts nothing blocks neither Write nor, after its timeout, Close. Writes are dropped and counted.
func TestStalledConsole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		c := New(in)
		for range queueSize + 11 { // one is being written, ten are dropped
			c.Write([]byte("x\n"))
			synctest.Wait()
		}
		io.ReadFull(out, make([]byte, len("x\nx\n")))
		synctest.Wait()
		c.Write([]byte("y\n"))
		c.Write([]byte("z\n"))
		start := time.Now()
		c.Close(time.Second)
		if took := time.Since(start); took != time.Second {
			t.Errorf("Close took %v", took)
		}
		want := strings.Repeat("x\n", queueSize-1) + "(10 messages dropped here: the console was not keeping up)\ny\nz\n"
		got := make([]byte, len(want))
		io.ReadFull(out, got)
		if string(got) != want {
			t.Errorf("wrote %q at the end", got[2*queueSize:])
		}
	})
}

// Write and Close may be called from several goroutines. The race detector checks this.
func TestConcurrentWriteAndClose(t *testing.T) {
	c := New(io.Discard)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range queueSize {
				c.Write([]byte("x\n"))
			}
			c.Close(time.Minute)
		})
	}
	wg.Wait()
}

func TestPlural(t *testing.T) {
	over := new(big.Int).Lsh(big.NewInt(1), 64)
	got := fmt.Sprint(Plural(0, "a"), Plural(1, "b"), Plural(int64(2), "c"), Plural(big.NewInt(1), "d"), Plural(over, "e"))
	if want := "0 as1 b2 cs1 d18446744073709551616 es"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

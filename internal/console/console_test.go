package console

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What is written comes out, in order and whole.
func TestWritesOn(t *testing.T) {
	var out bytes.Buffer
	c := New(&out)
	want := ""
	for i := range 100 {
		buf := fmt.Appendf(nil, "line %d\n", i)
		want += string(buf)
		if n, err := c.Write(buf); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
		clear(buf) // it is the caller's again
	}
	c.Close(time.Minute)
	c.Write([]byte("late"))
	c.Close(time.Minute)
	if out.String() != want {
		t.Errorf("it wrote %q", out.String())
	}
}

// A console that takes nothing holds up nobody: what is too much is lost, which is said when it
// takes output again, and Close waits no longer than its limit.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, in := io.Pipe()
		c := New(in)
		for range places + 11 { // one is being written, ten are lost
			c.Write([]byte("x\n"))
			synctest.Wait()
		}
		got := make([]byte, len("x\nx\n"))
		io.ReadFull(out, got)
		synctest.Wait()
		c.Write([]byte("y\n"))
		c.Write([]byte("z\n"))
		begun := time.Now()
		c.Close(time.Second)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("Close took %v", took)
		}
		want := strings.Repeat("x\n", places-1) + "(10 messages were lost here: the console did not take them)\ny\nz\n"
		got = make([]byte, len(want))
		io.ReadFull(out, got)
		if string(got) != want {
			t.Errorf("at the end it wrote %q", got[2*places:])
		}
	})
}

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
	var want strings.Builder
	for i := range 100 {
		text := fmt.Sprintf("line %d\n", i)
		want.WriteString(text)
		buf := []byte(text)
		if n, err := c.Write(buf); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
		clear(buf) // it is the caller's again
	}
	c.Close(time.Minute)
	if out.String() != want.String() {
		t.Errorf("it wrote %q", out.String())
	}
	c.Write([]byte("late"))
	c.Close(time.Minute)
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
		got := make([]byte, 2)
		io.ReadFull(out, got)
		synctest.Wait()
		c.Write([]byte("y\n"))
		begun := time.Now()
		c.Close(time.Second)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("Close took %v", took)
		}
		want := strings.Repeat("x\n", places) + "(10 messages were lost here: the console did not take them)\ny\n"
		got = make([]byte, len(want))
		io.ReadFull(out, got)
		if string(got) != want {
			t.Errorf("at the end it wrote %q", got[2*places:])
		}
	})
}

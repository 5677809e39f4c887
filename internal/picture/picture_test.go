package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"regexp"
	"testing"
)

// The pictures show what the server says today: an evening played without nc, and in a shorter round, draws the same.
func TestUpToDate(t *testing.T) {
	windows, err := play("500ms", func(ctx context.Context, port string) *window {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return &window{Writer: conn, Reader: conn, err: err}
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, colours := range themes {
		file, _ := os.ReadFile(name)
		for line := range bytes.Lines(draw(colours, windows)) {
			rest, found := bytes.CutPrefix(file, line)
			if !found {
				was, _, _ := bytes.Cut(file, []byte("\n"))
				t.Errorf("%s is not up to date, run: make picture\nit has  %s\nwant it %s", name, was, line)
				break
			}
			file = rest
		}
	}
}

// The pictures are XML, and no line is longer than its window.
func TestFits(t *testing.T) {
	lengths := regexp.MustCompile(`<svg.* width="(.*?)"|<text x="(.*?)".* textLength="(.*?)".*`)
	for name := range themes {
		file, _ := os.ReadFile(name)
		if err := xml.Unmarshal(file, new(struct{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var width, x, length float64
		for _, found := range lengths.FindAllStringSubmatch(string(file), -1) {
			fmt.Sscan(found[1], &width)
			fmt.Sscan(found[2]+" "+found[3], &x, &length)
			if found[1] == "" && (x < 8 || x+length > width-8) {
				t.Errorf("%s: it does not fit: %s", name, found[0])
			}
		}
	}
}

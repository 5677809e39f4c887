package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"testing"
)

// The pictures show what the server says today: an evening played in a shorter round draws the same. They are XML, and no line is
// longer than its window.
func TestPictures(t *testing.T) {
	windows := play("500ms")
	lengths := regexp.MustCompile(`<svg.* width="(.*?)"|<text x="(.*?)".* textLength="(.*?)".*`)
	for name, colours := range themes {
		file, _ := os.ReadFile(name)
		if string(file) != string(draw(colours, windows)) {
			t.Errorf("%s is not up to date; run make picture, and look at what has changed", name)
		}
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

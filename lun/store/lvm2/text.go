package lvm2

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// Bounds of the parser. LVM's metadata uses four levels; a group of ten
// thousand volumes has some 300,000 values.
const (
	maxDepth  = 8
	maxValues = 1 << 20
)

// Section is a run of settings and sections, in the order of the text. Keys are
// unique within one.
type Section struct {
	Name  string
	Items []Item
}

// Item is either a setting (Sub is nil) or a section.
type Item struct {
	Key   string
	Value Value
	Sub   *Section
}

// Value is int64, string or []Value.
type Value any

// ParseText parses metadata text into a nameless section. Offsets in its
// *lun.FormatError count from the start of the text.
func ParseText(text []byte) (*Section, error) {
	if len(text) > MaxText {
		return nil, &lun.FormatError{Format: format, Offset: -1, Field: "metadata text", Value: len(text), Reason: fmt.Sprintf("more than %d bytes are not read", MaxText)}
	}
	p := &parser{b: text}
	s := &Section{}
	if err := p.section(s, 0); err != nil {
		return nil, err
	}
	return s, nil
}

type parser struct {
	b      []byte
	pos    int
	values int
}

// count bounds the memory that a text can ask for.
func (p *parser) count() error {
	if p.values++; p.values > maxValues {
		return p.fail("value", fmt.Sprintf("more than %d keys and values are not read", maxValues))
	}
	return nil
}

func (p *parser) fail(field, why string) error {
	end := min(p.pos+24, len(p.b))
	var found any
	if p.pos < len(p.b) {
		found = string(p.b[p.pos:end])
	}
	return &lun.FormatError{Format: format, Offset: int64(p.pos), Field: "metadata text, " + field, Value: found, Reason: why}
}

// peek skips blanks and comments and returns the next byte, 0 at the end.
func (p *parser) peek() byte {
	for p.pos < len(p.b) {
		switch c := p.b[p.pos]; c {
		case ' ', '\t', '\n', '\r':
			p.pos++
		case '#':
			for p.pos < len(p.b) && p.b[p.pos] != '\n' {
				p.pos++
			}
		default:
			return c
		}
	}
	return 0
}

// section reads items up to the closing brace, or to the end at depth 0.
func (p *parser) section(s *Section, depth int) error {
	seen := make(map[string]bool)
	for {
		c := p.peek()
		switch {
		case c == 0 && p.pos < len(p.b):
			return p.fail("key", "a NUL byte is within the text")
		case c == 0:
			if depth > 0 {
				return p.fail("section "+s.Name, "the text ends before its closing brace")
			}
			return nil
		case c == '}':
			if depth == 0 {
				return p.fail("key", "a closing brace has no section")
			}
			p.pos++
			return nil
		}
		at := p.pos
		key := p.word()
		if key == "" {
			return p.fail("key", "expected a name")
		}
		if seen[key] {
			p.pos = at
			return p.fail("key", "is there twice in one section")
		}
		seen[key] = true
		if err := p.count(); err != nil {
			return err
		}
		switch p.peek() {
		case '{':
			if depth+1 > maxDepth {
				return p.fail("section "+key, fmt.Sprintf("more than %d levels of sections", maxDepth))
			}
			p.pos++
			sub := &Section{Name: key}
			if err := p.section(sub, depth+1); err != nil {
				return err
			}
			s.Items = append(s.Items, Item{Key: key, Sub: sub})
		case '=':
			p.pos++
			v, err := p.value()
			if err != nil {
				return err
			}
			s.Items = append(s.Items, Item{Key: key, Value: v})
		default:
			return p.fail("key "+key, "expected '=' or '{'")
		}
	}
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.+-", c) >= 0
}

func (p *parser) word() string {
	start := p.pos
	for p.pos < len(p.b) && isWord(p.b[p.pos]) {
		p.pos++
	}
	return string(p.b[start:p.pos])
}

func (p *parser) value() (Value, error) {
	if p.peek() != '[' {
		return p.scalar()
	}
	p.pos++
	list := []Value{}
	for {
		if p.peek() == ']' {
			p.pos++
			return list, nil
		}
		v, err := p.scalar()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
		default:
			return nil, p.fail("list", "expected ',' or ']'")
		}
	}
}

func (p *parser) scalar() (Value, error) {
	if err := p.count(); err != nil {
		return nil, err
	}
	if p.peek() == '"' {
		return p.str()
	}
	start := p.pos
	n, err := strconv.ParseInt(p.word(), 10, 64)
	if err != nil {
		p.pos = start
		if errors.Is(err, strconv.ErrRange) {
			return nil, p.fail("value", "the number has more than 64 bits")
		}
		return nil, p.fail("value", "expected a number, a string or a list")
	}
	return n, nil
}

func (p *parser) str() (Value, error) {
	start := p.pos
	var s strings.Builder
	for p.pos++; p.pos < len(p.b); p.pos++ {
		switch c := p.b[p.pos]; c {
		case '"':
			p.pos++
			return s.String(), nil
		case '\\':
			if p.pos+1 < len(p.b) {
				p.pos++
				s.WriteByte(p.b[p.pos])
			}
		default:
			s.WriteByte(c)
		}
	}
	p.pos = start
	return nil, p.fail("value", "the string has no end")
}

// Text prints the section's content in LVM's own layout, so that LVM and
// ParseText read the same from it.
func (s *Section) Text() []byte {
	var b strings.Builder
	s.print(&b)
	return []byte(b.String())
}

func (s *Section) print(b *strings.Builder) {
	for _, it := range s.Items {
		if it.Sub != nil {
			b.WriteString(it.Key + " {\n")
			it.Sub.print(b)
			b.WriteString("}\n")
			continue
		}
		b.WriteString(it.Key + " = ")
		printValue(b, it.Value)
		b.WriteByte('\n')
	}
}

func printValue(b *strings.Builder, v Value) {
	switch v := v.(type) {
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case string:
		b.WriteByte('"')
		for i := range len(v) {
			if v[i] == '"' || v[i] == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(v[i])
		}
		b.WriteByte('"')
	case []Value:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			printValue(b, e)
		}
		b.WriteByte(']')
	}
}

// clone copies the tree; values are never changed in place and are shared.
func (s *Section) clone() *Section {
	c := &Section{Name: s.Name, Items: make([]Item, len(s.Items))}
	for i, it := range s.Items {
		if it.Sub != nil {
			it.Sub = it.Sub.clone()
		}
		c.Items[i] = it
	}
	return c
}

// set replaces or appends a setting.
func (s *Section) set(key string, v Value) {
	for i := range s.Items {
		if s.Items[i].Key == key {
			s.Items[i] = Item{Key: key, Value: v}
			return
		}
	}
	s.Items = append(s.Items, Item{Key: key, Value: v})
}

// fields gives keyed access to a section's items with errors that name it.
type fields struct {
	where string
	m     map[string]Item
}

func (s *Section) fields(where string) fields {
	f := fields{where, make(map[string]Item, len(s.Items))}
	for _, it := range s.Items {
		f.m[it.Key] = it
	}
	return f
}

func (f fields) fail(key string, v any, why string) error {
	return &lun.FormatError{Format: format, Offset: -1, Field: f.where + "/" + key, Value: v, Reason: why}
}

// num returns a number between lo and hi.
func (f fields) num(key string, lo, hi int64) (int64, error) {
	v, ok := f.m[key].Value.(int64)
	if !ok {
		return 0, f.fail(key, nil, "is missing or no number")
	}
	if v < lo || v > hi {
		return 0, f.fail(key, v, fmt.Sprintf("must be between %d and %d", lo, hi))
	}
	return v, nil
}

func (f fields) str(key string) (string, error) {
	v, ok := f.m[key].Value.(string)
	if !ok {
		return "", f.fail(key, nil, "is missing or no string")
	}
	return v, nil
}

// strs returns the strings of a list; missing counts as empty.
func (f fields) strs(key string) []string {
	list, ok := f.m[key].Value.([]Value)
	if !ok {
		if one, ok := f.m[key].Value.(string); ok {
			return []string{one}
		}
		return nil
	}
	var out []string
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

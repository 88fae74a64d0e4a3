package assemble

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	koanfyaml "github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/v2"
	"go.yaml.in/yaml/v3"
)

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// Load reads a configuration. Errors name the file, the line and the key; a key
// that is not known is one, with the nearest that is.
func Load(path string, getenv func(string) string) (Config, error) {
	c := defaults(getenv, os.Geteuid())
	f, err := os.Open(path)
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	if len(text) > maxConfig {
		return c, usage("%s: more than %d bytes are no configuration", path, maxConfig)
	}
	if err := parse(text, &c); err != nil {
		return c, usage("%s: %w", path, err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	c.resolve(dir)
	if err := c.check(); err != nil {
		return c, usage("%s: %w", path, err)
	}
	return c, nil
}

// parse reads text over the defaults in c.
func parse(text []byte, c *Config) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return oneLine(err)
	}
	if len(doc.Content) == 0 { // nothing but comments
		return nil
	}
	if err := known(doc.Content[0], reflect.TypeFor[Config](), ""); err != nil {
		return err
	}
	k := koanf.New(".")
	if err := k.Load(content(text), koanfyaml.Parser()); err != nil {
		return oneLine(err)
	}
	err := k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result:      c,
		TagName:     "koanf",
		ErrorUnused: true,
		DecodeHook:  mapstructure.ComposeDecodeHookFunc(mapstructure.StringToTimeDurationHookFunc(), sizes),
	}})
	if err != nil {
		return oneLine(err)
	}
	return nil
}

// oneLine is a parser's error, which may have several.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
}

// content is bytes as a provider of koanf: the file is read once.
type content []byte

func (c content) ReadBytes() ([]byte, error) { return c, nil }
func (content) Read() (map[string]any, error) {
	return nil, errors.New("bytes are not yet parsed")
}

// sizes reads "10GiB" where bytes are wanted.
func sizes(from, to reflect.Type, data any) (any, error) {
	if from.Kind() != reflect.String || to != reflect.TypeFor[int64]() {
		return data, nil
	}
	s := data.(string)
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if digits, ok := strings.CutSuffix(s, unit); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
			if err != nil || n < 0 || n > 1<<20 {
				break
			}
			return n << (10 * (i + 1)), nil
		}
	}
	return nil, fmt.Errorf("%q: want bytes, or a whole number with KiB, MiB, GiB or TiB", s)
}

// known checks every key below n against the fields of t, and the shape of what
// they hold.
func known(n *yaml.Node, t reflect.Type, path string) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	at := func(n *yaml.Node, key string) string {
		return fmt.Sprintf("line %d: %s", n.Line, strings.TrimPrefix(path+key, "."))
	}
	switch t.Kind() {
	case reflect.Struct:
		if n.Kind != yaml.MappingNode {
			return fmt.Errorf("%s: want keys with values", at(n, ""))
		}
		fields := map[string]reflect.Type{}
		for i := range t.NumField() {
			fields[t.Field(i).Tag.Get("koanf")] = t.Field(i).Type
		}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			ft, ok := fields[key]
			if !ok {
				err := fmt.Errorf("%s: there is no such key", at(n.Content[i], "."+key))
				if near := nearest(key, fields); near != "" {
					return fmt.Errorf("%w; did you mean %s?", err, near)
				}
				return err
			}
			if err := known(n.Content[i+1], ft, path+"."+key); err != nil {
				return err
			}
		}
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			return fmt.Errorf("%s: want names with values", at(n, ""))
		}
		for i := 0; i < len(n.Content); i += 2 {
			if err := known(n.Content[i+1], t.Elem(), path+"."+n.Content[i].Value); err != nil {
				return err
			}
		}
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return fmt.Errorf("%s: want a list", at(n, ""))
		}
		for i, c := range n.Content {
			if err := known(c, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	default:
		if n.Kind != yaml.ScalarNode {
			return fmt.Errorf("%s: want one value", at(n, ""))
		}
	}
	return nil
}

// nearest returns the key that was probably meant, or "".
func nearest(key string, fields map[string]reflect.Type) string {
	best, least := "", 3
	for f := range fields {
		d := distance(strings.ToLower(key), strings.ToLower(f))
		if d < least || d == least && best != "" && f < best {
			best, least = f, d
		}
	}
	return best
}

// distance is Levenshtein's: how many letters to change, add or drop.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		above := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := above
			if a[i] != b[j] {
				cost++
			}
			above = row[j+1]
			row[j+1] = slices.Min([]int{cost, row[j] + 1, row[j+1] + 1})
		}
	}
	return row[len(b)]
}

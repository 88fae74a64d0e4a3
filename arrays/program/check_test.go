package program_test

import (
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/program"
)

// What a program finds is passed on, judged by its limit where it does not judge
// itself; a finding that says nothing, or what makes no sense, is refused.
func TestCheck(t *testing.T) {
	for _, row := range []struct {
		name, found string
		want        driver.Finding
		refused     string
	}{
		{"as it is", `{"area": "health", "check": "fans", "result": "warning", "detail": "one is slow", "try": "replace it"}`,
			driver.Finding{Area: driver.AreaHealth, Check: "fans", Result: driver.Warning, Detail: "one is slow", Try: "replace it"}, ""},
		{"fits", `{"area": "limit", "check": "LUNs", "try": "delete sets", "limit": {"unit": "LUNs", "used": 3, "most": 255, "next": 2}}`,
			driver.Finding{Area: driver.AreaLimit, Check: "LUNs", Result: driver.OK, Detail: "3 of 255 LUNs used, 252 left, the next set needs 2"}, ""},
		{"does not fit", `{"area": "limit", "check": "LUNs", "try": "delete sets", "limit": {"unit": "LUNs", "used": 254, "most": 255, "next": 2}}`,
			driver.Finding{Area: driver.AreaLimit, Check: "LUNs", Result: driver.Failed, Detail: "254 of 255 LUNs used, 1 left, the next set needs 2", Try: "delete sets"}, ""},
		{"judged by the program", `{"area": "limit", "check": "LUNs", "result": "unknown", "detail": "not counted", "limit": {"unit": "LUNs", "used": 254, "most": 255, "next": 2}}`,
			driver.Finding{Area: driver.AreaLimit, Check: "LUNs", Result: driver.Unchecked, Detail: "not counted"}, ""},
		{"no result", `{"area": "health", "check": "fans", "detail": "spin"}`, driver.Finding{}, `finding 1: result "": want one of`},
		{"no area", `{"area": "fans", "check": "fans", "result": "ok", "detail": "spin"}`, driver.Finding{}, `finding 1: area "fans": want one of`},
		{"no detail", `{"area": "health", "check": "fans", "result": "ok"}`, driver.Finding{}, "finding 1: check and detail"},
		{"less than nothing", `{"area": "limit", "check": "x", "limit": {"unit": "x", "used": -3, "most": 255}}`, driver.Finding{}, "finding 1: limit: -3 of 255"},
		{"more than there is", `{"area": "limit", "check": "x", "limit": {"unit": "x", "next": 9223372036854775807, "most": 255}}`, driver.Finding{}, "finding 1: limit: 0 of 255"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := open(t, program.Options{Command: []string{script(t, "false", `cat <<.
{"id": $id, "result": [`+row.found+`]}
.`)}})
			fs, err := p.Check(t.Context(), nil)
			if row.refused != "" {
				if p.Kind(err) != driver.Unreachable || !strings.Contains(err.Error(), row.refused) {
					t.Errorf("kind %v, %v; want kind %v and %q", p.Kind(err), err, driver.Unreachable, row.refused)
				}
				return
			}
			if err != nil || len(fs) != 1 {
				t.Fatalf("%v, %v", fs, err)
			}
			fs[0].Limit = nil
			if fs[0] != row.want {
				t.Errorf("%+v\nwant %+v", fs[0], row.want)
			}
		})
	}
}

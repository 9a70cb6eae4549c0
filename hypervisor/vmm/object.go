package vmm

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// object is a JSON object whose values stay as they were written, so that what is not edited does not change: numbers
// keep their digits and unknown keys stay.
type object map[string]json.RawMessage

func parseObject(raw []byte) (object, error) {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, err
	}
	return o, nil
}

func (o object) set(key string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("set %q: %w", key, err)
	}
	o[key] = raw
	return nil
}

// str reads a string; absent and null are empty.
func (o object) str(key string) string {
	var s string
	if json.Unmarshal(o[key], &s) != nil {
		return ""
	}
	return s
}

// edit applies a change to the object at key, which must be there.
func (o object) edit(key string, change func(object) error) error {
	child, err := parseObject(o[key])
	if err != nil || child == nil {
		return fmt.Errorf("the configuration has no %q", key)
	}
	if err := change(child); err != nil {
		return err
	}
	return o.set(key, child)
}

// setIn sets a string inside the object at key; an empty value changes nothing.
func (o object) setIn(key, field, value string) error {
	if value == "" {
		return nil
	}
	return o.edit(key, func(child object) error { return child.set(field, value) })
}

// setFile redirects a console that writes to a file; an empty value changes nothing.
func (o object) setFile(key, file string) error {
	if file == "" {
		return nil
	}
	return o.edit(key, func(child object) error {
		if mode := child.str("mode"); mode != string(ConsoleToFile) {
			return fmt.Errorf("%q has mode %q, not %q: it writes to no file", key, mode, ConsoleToFile)
		}
		return child.set("file", file)
	})
}

// editList applies changes to the members of the list at key by their "id". Every id must be found.
func (o object) editList(key string, changes map[string]func(object) error) error {
	if len(changes) == 0 {
		return nil
	}
	var members []object
	if raw, ok := o[key]; ok {
		if err := json.Unmarshal(raw, &members); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
	}
	missing := maps.Clone(changes)
	for _, m := range members {
		id := m.str("id")
		if change, ok := changes[id]; ok {
			if err := change(m); err != nil {
				return fmt.Errorf("%q with id %q: %w", key, id, err)
			}
			delete(missing, id)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%q has no member with id %q", key, slices.Sorted(maps.Keys(missing))[0])
	}
	return o.set(key, members)
}

func setters(field string, values map[string]string) map[string]func(object) error {
	changes := make(map[string]func(object) error, len(values))
	for id, v := range values {
		changes[id] = func(m object) error { return m.set(field, v) }
	}
	return changes
}

package httpd

import (
	"crypto/sha256"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"stillframe/fsm"
)

// headerAPIKey may carry the API key in place of Authorization, which it overrides.
const headerAPIKey = "leap0-authorization"

// authenticate finds the organization of the request's API key. Every way to fail gives the same answer, and the same
// work is done for each: one hash and one lookup. A lookup by hash tells by its timing nothing about a key.
func (s *Server) authenticate(c *call) error {
	org, key, ok := s.caller(&c.fc.Request().Header)
	if !ok {
		return errUnauthorized
	}
	c.org, c.key = org, key
	return nil
}

var errUnauthorized = failf(fsm.KindUnauthorized, "a valid API key is required, in the authorization header")

// caller finds whose key the headers carry.
func (s *Server) caller(header *fasthttp.RequestHeader) (fsm.Org, fsm.KeyID, bool) {
	state := s.log.State()
	key, found := state.KeyByHash(sha256.Sum256([]byte(presentedKey(header))))
	org, known := state.Org(key.Org)
	return org, key.ID, found && known && key.RevokedAt == 0
}

// presentedKey is the secret that the request carries, empty for none or for a header that comes twice.
func presentedKey(header *fasthttp.RequestHeader) string {
	values := header.PeekAll(headerAPIKey)
	if len(values) == 0 {
		values = header.PeekAll(fiber.HeaderAuthorization)
	}
	if len(values) != 1 {
		return ""
	}
	value := strings.TrimSpace(string(values[0]))
	if scheme, rest, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "bearer") {
		value = strings.TrimSpace(rest)
	}
	return value
}

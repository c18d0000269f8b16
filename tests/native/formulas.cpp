#include "formulas.h"

#include <algorithm>
#include <cmath>

std::vector<double> random_weight(int64_t out, int64_t in, int64_t kernel) {
  const int64_t each = in * kernel * kernel;
  return random_numbers(out * each, 0, 1 / std::sqrt(static_cast<double>(each)));
}

Map convolve(const Map& x, const std::vector<double>& weight, int64_t out, int64_t kernel,
             int64_t stride, int64_t padding, int64_t height, int64_t width) {
  Map y(x.batch, height, width, out);
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t u = 0; u < kernel; ++u) {
          for (int64_t v = 0; v < kernel; ++v) {
            const int64_t row = stride * i + u - padding, column = stride * j + v - padding;
            if (row < 0 || row >= x.height || column < 0 || column >= x.width) continue;
            const double* pixel = &x.values[((b * x.height + row) * x.width + column) * x.channels];
            for (int64_t o = 0; o < out; ++o) {
              const double* w = &weight[(o * x.channels * kernel + u) * kernel + v];
              double sum = 0;
              for (int64_t c = 0; c < x.channels; ++c) sum += w[c * kernel * kernel] * pixel[c];
              y.at(b, i, j, o) += sum;
            }
          }
        }
      }
    }
  }
  return y;
}

Map enlarged(const Map& x) {
  Map y(x.batch, 2 * x.height, 2 * x.width, x.channels);
  for (int64_t b = 0; b < y.batch; ++b) {
    for (int64_t i = 0; i < y.height; ++i) {
      for (int64_t j = 0; j < y.width; ++j) {
        for (int64_t c = 0; c < y.channels; ++c) y.at(b, i, j, c) = x.at(b, i / 2, j / 2, c);
      }
    }
  }
  return y;
}

Map halved(const Map& x) {
  Map y(x.batch, x.height / 2, x.width / 2, x.channels);
  for (int64_t b = 0; b < y.batch; ++b) {
    for (int64_t i = 0; i < y.height; ++i) {
      for (int64_t j = 0; j < y.width; ++j) {
        for (int64_t c = 0; c < y.channels; ++c) {
          y.at(b, i, j, c) = (x.at(b, 2 * i, 2 * j, c) + x.at(b, 2 * i, 2 * j + 1, c) +
                              x.at(b, 2 * i + 1, 2 * j, c) + x.at(b, 2 * i + 1, 2 * j + 1, c)) /
                             4;
        }
      }
    }
  }
  return y;
}

Map statistics_of(const Map& map) {
  Map result(map.batch, (map.height + 3) / 4, 2, map.channels);
  for (int64_t b = 0; b < map.batch; ++b) {
    for (int64_t strip = 0; strip < result.height; ++strip) {
      const int64_t first = 4 * strip, last = std::min(first + 4, map.height);
      for (int64_t c = 0; c < map.channels; ++c) {
        double mean = 0, squares = 0;
        for (int64_t y = first; y < last; ++y) {
          for (int64_t x = 0; x < map.width; ++x) {
            mean += map.at(b, y, x, c) / static_cast<double>((last - first) * map.width);
          }
        }
        for (int64_t y = first; y < last; ++y) {
          for (int64_t x = 0; x < map.width; ++x) {
            squares += (map.at(b, y, x, c) - mean) * (map.at(b, y, x, c) - mean);
          }
        }
        result.at(b, strip, 0, c) = mean;
        result.at(b, strip, 1, c) = squares;
      }
    }
  }
  return result;
}

Map group_norm(const std::vector<Map>& maps, int64_t groups, double eps) {
  const Map map = joined(maps);
  const int64_t each = map.channels / groups;
  // The mean of (x - from)^power over one group.
  const auto moment = [&](int64_t b, int64_t group, double from, int power) {
    double sum = 0;
    for (int64_t y = 0; y < map.height; ++y) {
      for (int64_t x = 0; x < map.width; ++x) {
        for (int64_t c = group * each; c < (group + 1) * each; ++c) {
          sum += std::pow(map.at(b, y, x, c) - from, power);
        }
      }
    }
    return sum / static_cast<double>(each * map.height * map.width);
  };
  Map norm(map.batch, 3, 1, map.channels);
  for (int64_t b = 0; b < map.batch; ++b) {
    for (int64_t c = 0; c < map.channels; ++c) {
      const double mean = moment(b, c / each, 0, 1);
      norm.at(b, 0, 0, c) = mean;
      norm.at(b, 1, 0, c) = 1 / std::sqrt(moment(b, c / each, mean, 2) + eps);
    }
  }
  return norm;
}

Map channels_of(const Map& map, int64_t first, int64_t last) {
  Map part(map.batch, map.height, map.width, last - first);
  for (size_t k = 0; k < part.values.size(); ++k) {
    const int64_t pixel = k / part.channels, c = k % part.channels;
    part.values[k] = map.values[pixel * map.channels + first + c];
  }
  return part;
}

Map joined(const std::vector<Map>& maps) {
  int64_t channels = 0;
  for (const Map& map : maps) channels += map.channels;
  Map all(maps[0].batch, maps[0].height, maps[0].width, channels);
  int64_t before = 0;
  for (const Map& map : maps) {
    for (size_t k = 0; k < map.values.size(); ++k) {
      const int64_t pixel = k / map.channels, c = k % map.channels;
      all.values[pixel * channels + before + c] = map.values[k];
    }
    before += map.channels;
  }
  return all;
}

namespace {

// One query: q and `to` are pixels of its head, k and v the first of its sample.
void attend(const double* q, const double* k, const double* v, double* to, const Map& shape,
            int64_t head_dim, double scale) {
  std::vector<double> score(shape.height * shape.width);
  for (size_t t = 0; t < score.size(); ++t) {
    for (int64_t d = 0; d < head_dim; ++d) score[t] += q[d] * k[t * shape.channels + d] * scale;
  }
  const double largest = *std::max_element(score.begin(), score.end());
  double sum = 0;
  for (double& s : score) sum += s = std::exp(s - largest);
  for (size_t t = 0; t < score.size(); ++t) {
    for (int64_t d = 0; d < head_dim; ++d) to[d] += score[t] / sum * v[t * shape.channels + d];
  }
}

}  // namespace

Map attention(const Map& q, const Map& k, const Map& v, int64_t heads, double scale) {
  Map y(q.batch, q.height, q.width, q.channels);
  const int64_t tokens = q.height * q.width, head_dim = q.channels / heads;
  for (int64_t b = 0; b < q.batch; ++b) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t first = b * tokens * q.channels + head * head_dim;
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t query = first + t * q.channels;
        attend(&q.values[query], &k.values[first], &v.values[first], &y.values[query], q, head_dim,
               scale);
      }
    }
  }
  return y;
}
